"""Scores of candidates and positives by embeddings, BM25 or a cross-encoder, each computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import torch

from rankpo.mining.data import MiningData
from rankpo.retrieval.embeddings import TextList, cached_embeddings
from rankpo.retrieval.stored import Embeddings, Stored
from rankpo.runs import processes

if TYPE_CHECKING:
    from rankpo.models.vectors import GivesVectors

Say = Callable[[str], None]


@runtime_checkable
class PairScorer(Protocol):
    """A reranker: one score per (query, document)."""

    def compute_score(self, pairs: Sequence[tuple[str, str]]) -> Sequence[float]: ...


@dataclass
class DenseScores:
    """Embeddings of the queries and of requested texts, stored under `cache_dir`."""

    model: GivesVectors
    data: MiningData
    cache_dir: Path
    say: Say
    _queries: Stored | None = field(default=None, init=False)
    _texts: Stored | None = field(default=None, init=False)
    _rows: np.ndarray | None = field(default=None, init=False)

    @property
    def queries(self) -> Stored:
        if self._queries is None:
            queries = self.data.queries
            model, texts = self.model, [query.text for query in queries]
            if any(query.prompt is not None for query in queries):
                own = model.inputs.prompt("query")
                prompts = [own if query.prompt is None else query.prompt for query in queries]
                model, texts = without_prompt(model), [a + b for a, b in zip(prompts, texts, strict=True)]
            listed = TextList([str(number) for number in range(len(queries))], texts)
            self._queries = cached_embeddings(self.cache_dir, model, listed, "query", self.say)
        return self._queries

    def encode(self, numbers: np.ndarray | None = None) -> Stored:
        """Embeddings of all texts, or of those with the given numbers (sorted, distinct)."""
        data = self.data
        chosen = range(len(data.texts)) if numbers is None else numbers.tolist()
        texts = TextList([data.ids[number] for number in chosen], [data.texts[number] for number in chosen])
        self._rows = numbers
        self._texts = cached_embeddings(self.cache_dir, self.model, texts, "passage", self.say)
        return self._texts

    def vectors(self, numbers: np.ndarray) -> np.ndarray:
        """[n, D] vectors of texts that were encoded by `encode`, for kinds with one vector per text."""
        assert isinstance(self._texts, Embeddings), "encode comes first"
        return self._texts.rows(self._places(numbers))

    def _places(self, numbers: np.ndarray) -> np.ndarray:
        return numbers if self._rows is None else np.searchsorted(self._rows, numbers)

    def scores(self, query: int, numbers: np.ndarray) -> np.ndarray:
        """[n] float64 scores of one query with texts, by the model's similarity."""
        assert self._texts is not None, "encode comes first"
        if isinstance(self._texts, Embeddings) and not self._texts.sparse:
            vector = self.queries.vectors(np.array([query])).rows.numpy()[0]
            return (self.vectors(numbers) @ vector).astype(np.float64)
        asked, given = self.queries.vectors(np.array([query])), self._texts.vectors(self._places(numbers))
        return self.model.stored_similarity(asked, given)[0].numpy().astype(np.float64)


def without_prompt(model: GivesVectors) -> GivesVectors:
    """Returns the model without a query prompt, for query texts that already contain their prompts."""
    plain = copy(model)
    plain.settings = replace(model.settings, **{"query_prompt": ""})
    plain.inputs = type(model.inputs)(model.tokenizer, plain.settings)
    return plain


def pair_scores(scorer: PairScorer, data: MiningData, query: int, numbers: np.ndarray) -> np.ndarray:
    """[n] float64: the cross-encoder's scores of one query with texts."""
    if not len(numbers):
        return np.empty(0)
    text = data.queries[query].text
    found = scorer.compute_score([(text, data.texts[number]) for number in numbers.tolist()])
    return np.asarray(found, dtype=np.float64)


def score_pairs(
    scorer: PairScorer, data: MiningData, numbers: Sequence[np.ndarray], device: torch.device
) -> list[np.ndarray]:
    """Returns `pair_scores` of every query on every rank; one rank computes each query."""
    own = range(processes.rank(), len(numbers), processes.world_size())
    scored = {query: pair_scores(scorer, data, query, numbers[query]) for query in own}
    if processes.world_size() == 1:
        return [scored[query] for query in range(len(numbers))]
    offsets = np.concatenate([[0], np.cumsum([len(item) for item in numbers])])
    places = [np.arange(offsets[query], offsets[query + 1]) for query in own]
    local = torch.from_numpy(np.concatenate([np.empty(0), *scored.values()])).to(device)
    rows = torch.from_numpy(np.concatenate([np.empty(0, dtype=np.int64), *places]))
    flat = processes.place_rows(local, rows, int(offsets[-1])).cpu().numpy()
    return np.split(flat, offsets[1:-1])
