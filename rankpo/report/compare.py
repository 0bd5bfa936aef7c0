"""Search over indexes of task=encode for the page's search box: the hits of one or two models for a query."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rankpo.report import palette
from rankpo.retrieval.exact import search_blocks

if TYPE_CHECKING:
    from rankpo.models.embedding.model import EmbeddingModel
    from rankpo.retrieval.embeddings import Embeddings

MAX_QUERY = 2000  # characters
MAX_TEXT = 700


@dataclass(frozen=True, kw_only=True)
class Index:
    """A model, its encoded corpus, the ids of the rows, and the known texts by id."""

    name: str
    model: EmbeddingModel
    corpus: Embeddings
    ids: Sequence[str]
    texts: Mapping[str, str]


class Searcher:
    """Searches all indexes for the same query. Searches run one at a time, since a model is not thread-safe."""

    def __init__(self, indexes: Sequence[Index], top_k: int) -> None:
        self.indexes = indexes
        self.top_k = top_k
        self._lock = threading.Lock()

    def __call__(self, query: str) -> dict[str, object]:
        """{"models": [{name, colour, hits: [{id, text, score, rank}]}]}, in descending order of score.

        Raises ValueError for a query that is empty or longer than MAX_QUERY characters.
        """
        if not query.strip() or len(query) > MAX_QUERY:
            raise ValueError(f"the query must have between 1 and {MAX_QUERY} characters, got {len(query.strip())}")
        with self._lock:
            found = [self._hits(index, query) for index in self.indexes]
        models = [
            {"name": index.name, "colour": palette.colour(number), "hits": hits}
            for number, (index, hits) in enumerate(zip(self.indexes, found, strict=True))
        ]
        return {"models": models}

    def _hits(self, index: Index, query: str) -> list[dict[str, object]]:

        vector = torch.from_numpy(index.model.encode([query], role="query"))
        scores, numbers = search_blocks(vector, index.corpus.blocks(), self.top_k)
        hits = zip(numbers[0].tolist(), scores[0].tolist(), strict=True)
        return [
            {
                "id": index.ids[number],
                "text": index.texts.get(index.ids[number], "")[:MAX_TEXT],
                "score": round(score, 6),
                "rank": rank,
            }
            for rank, (number, score) in enumerate(hits, 1)
        ]
