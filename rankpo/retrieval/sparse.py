"""Search of sparse vectors: exact products shard by shard, and an inverted index with pruning."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from rankpo.models.engine.sparse_vectors import products, to_csr
from rankpo.retrieval.exact import best
from rankpo.types import Vectors

TERMS_BETWEEN_LOOKS = 4  # Terms between two computations of the k-th score.


def search_products(queries: Vectors, blocks: Iterable[Vectors], dim: int, top_k: int) -> tuple[Tensor, Tensor]:
    """Scores [Q, k] and numbers [Q, k] of the largest inner products, ties by ascending number. blocks: of the corpus."""
    scores = torch.empty(len(queries), 0)
    numbers = torch.empty(len(queries), 0, dtype=torch.int64)
    start = 0
    for block in blocks:
        found, columns = best(products(queries, block, dim), top_k)
        candidates = torch.cat([numbers, columns + start], 1)
        scores, places = best(torch.cat([scores, found], 1), top_k)
        numbers = candidates.gather(1, places)
        start += len(block)
    return scores, numbers


class InvertedIndex:
    """Postings of every vocabulary entry: the documents that have it and their weights, by document number.

    A search adds a query's entries in descending order of their maximum contribution (MaxScore, Turtle & Flood 1995).
    Once the remaining entries cannot raise another document above the k-th score, only documents that can still reach
    it are scored further, so that the result equals that of an exact search.
    """

    def __init__(self, blocks: Iterable[Vectors], dim: int) -> None:
        parts = list(blocks)
        counts = torch.cat([part.counts for part in parts]) if parts else torch.zeros(0, dtype=torch.int64)
        rows = torch.cat([part.rows for part in parts]) if parts else torch.zeros(0, 2)
        columns = to_csr(Vectors(rows, counts), dim).tocsc()
        columns.sort_indices()
        self.num_documents = len(counts)
        self.borders, self.documents, self.weights = columns.indptr, columns.indices, columns.data
        self.largest = np.zeros(dim, dtype=np.float32)
        filled = np.flatnonzero(np.diff(self.borders))
        if len(filled):
            self.largest[filled] = np.maximum.reduceat(self.weights, self.borders[filled])

    def search(self, queries: Vectors, top_k: int) -> tuple[Tensor, Tensor]:
        """Like `search_products`: scores [Q, k] and numbers [Q, k], k at most the number of documents."""
        depth = min(top_k, self.num_documents)
        if not depth:
            return torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
        scores = np.zeros((len(queries), depth), dtype=np.float32)
        numbers = np.zeros((len(queries), depth), dtype=np.int64)
        parts = queries.rows.numpy()
        for row, part in enumerate(np.split(parts, queries.counts.cumsum(0).numpy()[:-1]) if len(queries) else []):
            numbers[row], scores[row] = self._one(part[:, 0].astype(np.int64), part[:, 1], depth)
        return torch.from_numpy(scores), torch.from_numpy(numbers)

    def _one(self, entries: np.ndarray, weights: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        bounds = weights * self.largest[entries]
        order = np.argsort(-bounds, kind="stable")
        entries, weights, bounds = entries[order], weights[order], bounds[order]
        left = np.append(np.cumsum(bounds[::-1])[::-1], 0)  # The maximum sum of the remaining entries.
        found = np.zeros(self.num_documents, dtype=np.float32)
        done = 0
        while done < len(entries):
            for number in range(done, min(done + TERMS_BETWEEN_LOOKS, len(entries))):
                documents, stored = self._postings(entries[number])
                found[documents] += weights[number] * stored
            done = min(done + TERMS_BETWEEN_LOOKS, len(entries))
            border = np.partition(found, len(found) - depth)[len(found) - depth]
            if left[done] < border:
                break
        # All other documents score at most `left`, which is below the k-th score.
        candidates = np.flatnonzero(found + left[done] * (1 + 1e-5) >= border) if done < len(entries) else None
        if candidates is None:
            return _largest(found, np.arange(len(found)), depth)
        for number in range(done, len(entries)):
            documents, stored = self._postings(entries[number])
            places = np.searchsorted(documents, candidates)
            inside = places < len(documents)
            hit = inside.copy()
            hit[inside] = documents[places[inside]] == candidates[inside]
            found[candidates[hit]] += weights[number] * stored[places[hit]]
        return _largest(found[candidates], candidates, depth)

    def _postings(self, entry: int) -> tuple[np.ndarray, np.ndarray]:
        place = slice(self.borders[entry], self.borders[entry + 1])
        return self.documents[place], self.weights[place]


def _largest(scores: np.ndarray, numbers: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    values, columns = best(torch.from_numpy(scores)[None], depth)
    return numbers[columns[0].numpy()], values[0].numpy()
