"""Sparse vectors in stored form, one row (entry, weight) for each non-zero entry, and their products."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from rankpo.types import Vectors

COLUMNS = 2  # The index of the entry, exact in float32 up to 2^24, and its weight.


def compact(weights: Tensor, max_active: int | None = None) -> Vectors:
    """Returns the stored form of weights [n, V]. max_active: the number of largest entries to keep per row; None: all."""
    if max_active is not None and max_active < weights.shape[1]:
        values, entries = weights.topk(max_active, dim=1)
        weights = torch.zeros_like(weights).scatter(1, entries, values)
    row, entry = weights.nonzero(as_tuple=True)
    counts = torch.bincount(row, minlength=len(weights))
    return Vectors(torch.stack([entry.float(), weights[row, entry].float()], 1).cpu(), counts.cpu())


def joined(parts: Sequence[Vectors]) -> Vectors:
    if not parts:
        return Vectors(torch.zeros(0, COLUMNS), torch.zeros(0, dtype=torch.int64))
    return Vectors(torch.cat([part.rows for part in parts]), torch.cat([part.counts for part in parts]))


def to_csr(vectors: Vectors, dim: int) -> csr_array:
    """Returns a CSR matrix [N, dim] in float32."""
    borders = np.concatenate([[0], vectors.counts.numpy().cumsum()])
    entries, weights = vectors.rows[:, 0].numpy().astype(np.int32), vectors.rows[:, 1].numpy()
    return csr_array((weights, entries, borders), shape=(len(vectors), dim))


def of_csr(matrix: csr_array) -> Vectors:
    """Returns the stored form of a CSR matrix."""
    rows = np.stack([matrix.indices.astype(np.float32), matrix.data.astype(np.float32)], 1)
    return Vectors(torch.from_numpy(rows), torch.from_numpy(np.diff(matrix.indptr).astype(np.int64)))


def products(queries: Vectors, candidates: Vectors, dim: int) -> Tensor:
    """[q, c] float32 inner products of all pairs, in stored form."""
    matrix = to_csr(queries, dim) @ to_csr(candidates, dim).T.tocsr()
    return torch.from_numpy(matrix.toarray())


def paired_products(left: Vectors, right: Vectors, dim: int) -> Tensor:
    """[n] float32 inner products of row i with row i, in stored form."""
    sums = to_csr(left, dim).multiply(to_csr(right, dim)).sum(axis=1)
    return torch.from_numpy(np.asarray(sums, dtype=np.float32).ravel())
