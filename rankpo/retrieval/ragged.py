"""Search over texts with several stored rows each, by a model's own score: MaxSim of token vectors, sparse products."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from rankpo.errors import ConfigError
from rankpo.models.vectors import GivesVectors
from rankpo.retrieval.dense import DenseSearch, Hits, check_free, gathered, own_rows
from rankpo.retrieval.exact import BYTES_PER_HIT, best, search_vectors
from rankpo.retrieval.faiss_index import FaissSettings
from rankpo.retrieval.stored import HybridEmbeddings, Stored, TokenEmbeddings
from rankpo.types import Vectors

Say = Callable[[str], None]
Similarity = Callable[[Vectors, Vectors], Tensor]  # [q, c] scores of queries with documents, in stored form
BYTES_OF_BLOCK = 256 * 2**20  # Products of one block with a chunk of queries, and the block itself.
QUERIES_PER_TURN = 16  # Queries per chunk of a rank.


@dataclass(frozen=True, kw_only=True)
class RaggedSearch:
    """An exact search for the best `top_k` documents of every query.

    similarity: `GivesVectors.stored_similarity` of the model. device: where ranks exchange results. say: prints
    progress lines.
    """

    top_k: int
    similarity: Similarity
    device: torch.device
    say: Say

    def check_memory(self, num_queries: int, num_documents: int, dim: int) -> int:
        """Returns and reports the bytes that the search needs. Raises TooLargeError if this memory is not free.

        Documents are read from disk, shard by shard.
        """
        depth = min(self.top_k, num_documents)
        needed = BYTES_PER_HIT * num_queries * depth + BYTES_OF_BLOCK
        check_free(needed, torch.device("cpu"), num_queries, num_documents, self.say)
        return needed

    def hits(self, queries: Stored, corpus: Stored, num_documents: int | None = None) -> Hits:
        """Returns equal hits on every rank. num_documents: searches only the first documents of the corpus."""
        assert isinstance(corpus, TokenEmbeddings)
        limit = len(corpus) if num_documents is None else num_documents
        own = own_rows(len(queries), QUERIES_PER_TURN)
        found = search_stored(queries.vectors(own.numpy()), corpus.blocks(limit), self.similarity, self.top_k)
        return gathered(found, own, len(queries), self.device)


def make_search(
    model: GivesVectors, top_k: int, device: torch.device, say: Say, faiss: FaissSettings | None = None
) -> DenseSearch | RaggedSearch:
    """Returns the search for a kind's vectors. Raises ConfigError for backends that do not support them."""
    if not model.ragged:
        return DenseSearch(top_k=top_k, device=device, say=say, faiss=faiss)
    if faiss is not None:
        raise ConfigError(
            [f"backend=faiss supports one vector per text, but kind={model.kind} has several; set backend=exact"]
        )
    return RaggedSearch(top_k=top_k, similarity=model.stored_similarity, device=device, say=say)


def search_stored(
    queries: Vectors, blocks: Iterable[Vectors], similarity: Similarity, top_k: int
) -> tuple[Tensor, Tensor]:
    """Scores [q, k] and document numbers [q, k], best first, ties by ascending number; k is at most the corpus size.

    blocks: the documents' vectors, read once, one block after another.
    """
    scores, numbers = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
    start = 0
    for block in blocks:
        found, columns = search_vectors(queries, block, similarity, top_k)
        # Earlier documents come first, so that equal scores are ordered by number.
        candidates = torch.cat([numbers, columns + start], 1)
        scores, places = best(torch.cat([scores, found], 1), top_k)
        numbers = candidates.gather(1, places)
        start += len(block)
    return scores, numbers


def by_part(queries: Stored, corpus: HybridEmbeddings, part: str, model: GivesVectors, depth: int) -> list[np.ndarray]:
    """The first stage of a hybrid search, on every rank: the best `depth` documents of each query by one part."""
    own = own_rows(len(queries), QUERIES_PER_TURN)
    asked = model.stored_part(queries.vectors(own.numpy()), part)
    found = search_stored(asked, corpus.part_blocks(part), partial(model.stored_part_similarity, part), depth)
    return list(gathered(found, own, len(queries), model.device).numbers)


def rescored(
    queries: Stored,
    corpus: Stored,
    candidates: Sequence[np.ndarray],
    similarity: Similarity,
    top_k: int,
    device: torch.device,
) -> Hits:
    """The second stage of a search, on every rank: each query's own candidates, best first, at most `top_k`.

    candidates: document numbers of each query in the first stage's order, which also orders equal scores.
    device: where ranks exchange results.
    """
    own = own_rows(len(queries), QUERIES_PER_TURN)
    depth = min(top_k, max((len(item) for item in candidates), default=0))
    scores = torch.full((len(own), depth), -torch.inf)
    numbers = torch.full((len(own), depth), -1, dtype=torch.int64)
    for row, query in enumerate(own.tolist()):
        if len(chosen := candidates[query]):
            found = similarity(queries.vectors(np.array([query])), corpus.vectors(chosen)).float()
            values, places = best(found, min(depth, len(chosen)))
            scores[row, : values.shape[1]] = values[0]
            numbers[row, : values.shape[1]] = torch.from_numpy(chosen)[places[0]]
    return gathered((scores, numbers), own, len(queries), device)
