"""Search over quantised embeddings: integer products first, and then inner products of the queries in float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rankpo.retrieval.dense import Hits, check_free, gathered, own_rows
from rankpo.retrieval.exact import QUERIES_PER_CHUNK, best, estimate_memory, search_blocks
from rankpo.retrieval.quantisation import Quantiser
from rankpo.retrieval.stored import Embeddings, Stored

Say = Callable[[str], None]
QUERIES_PER_TURN = 16  # Queries whose candidates are decoded at once.


@dataclass(frozen=True, kw_only=True)
class QuantisedSearch:
    """A search for the best `top_k` documents of every query in a folder of codes.

    rescore_multiplier: the first stage, with the queries quantised too, finds rescore_multiplier · top_k documents; the
    second one orders them by the inner products of the queries in float32 with the decoded codes. 0: the first stage only.
    device: of the first stage. say: prints progress lines.
    """

    top_k: int
    rescore_multiplier: int
    device: torch.device
    say: Say

    def check_memory(self, num_queries: int, num_documents: int, dim: int) -> int:
        """Returns and reports the bytes that the search needs. Raises TooLargeError if this memory is not free."""
        depth = min(self._depth, num_documents)
        needed = estimate_memory(num_queries, num_documents, dim, depth, resident=False)
        needed += 4 * QUERIES_PER_TURN * depth * dim
        check_free(needed, self.device, num_queries, num_documents, self.say)
        return needed

    @property
    def _depth(self) -> int:
        """The documents of the first stage."""
        return self.top_k * max(1, self.rescore_multiplier)

    def hits(self, queries: Stored, corpus: Stored, num_documents: int | None = None) -> Hits:
        """Returns equal hits on every rank. num_documents: searches only the first rows of the corpus."""
        assert isinstance(queries, Embeddings) and isinstance(corpus, Embeddings) and corpus.quantiser is not None
        quantiser = corpus.quantiser
        own = own_rows(len(queries), QUERIES_PER_CHUNK)
        vectors = queries.rows(own.numpy())
        codes, scales, offsets = quantiser.queries(vectors)
        blocks = (_signed(quantiser, block) for block in corpus.stored_blocks(num_documents))
        scores, numbers = search_blocks(
            torch.from_numpy(codes).to(self.device), blocks, self._depth, products=integer_products
        )
        if self.rescore_multiplier:
            found = rescored(vectors, numbers.cpu(), corpus, self.top_k)
        else:
            found = (scores.cpu() * _column(scales) + _column(offsets), numbers.cpu())
        return gathered(found, own, len(queries), self.device)


def _signed(quantiser: Quantiser, block: np.ndarray) -> Tensor:
    return torch.from_numpy(quantiser.signed(block))


def _column(values: np.ndarray) -> Tensor:
    """[Q, 1] float32."""
    return torch.from_numpy(values.astype(np.float32))[:, None]


def integer_products(queries: Tensor, documents: Tensor) -> Tensor:
    """[q, c] float32 inner products of int8 rows [q, D] and [c, D], with the CPU's instructions for 8-bit integers."""
    if queries.device.type == "cpu" and len(queries) and torch.backends.cpu.get_cpu_capability() == "AVX512":
        return torch._int_mm(queries, documents.T).float()
    return queries.float() @ documents.float().T


def rescored(queries: np.ndarray, numbers: Tensor, corpus: Embeddings, top_k: int) -> tuple[Tensor, Tensor]:
    """Scores and numbers [Q, k] of the best of each query's own documents; equal scores in ascending order of the numbers.

    queries: [Q, D] float32. numbers: [Q, n] rows of the corpus, a folder of codes.
    """
    assert corpus.quantiser is not None
    weights, offsets = map(torch.from_numpy, corpus.quantiser.weights(queries))
    depth = min(top_k, numbers.shape[1])
    scores, found = torch.empty(len(queries), depth), torch.empty(len(queries), depth, dtype=torch.int64)
    for rows in torch.arange(len(queries)).split(QUERIES_PER_TURN):
        chosen = numbers[rows].sort(1).values
        needed, places = np.unique(chosen.numpy(), return_inverse=True)
        documents = _signed(corpus.quantiser, corpus.stored_rows(needed)).float()
        # The products with the documents of all queries of a turn take less time than a copy of each query's own.
        products = (weights[rows] @ documents.T).gather(1, torch.from_numpy(places.reshape(chosen.shape)))
        scores[rows], columns = best(products + offsets[rows, None], depth)
        found[rows] = chosen.gather(1, columns)
    return scores, found
