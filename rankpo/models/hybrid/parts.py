"""The parts of a hybrid model's vectors in stored form, and the scores of each part without gradient.

Stored forms: dense, one row per text. sparse, rows (entry, weight) as in `engine/sparse_vectors.py`. colbert, token vectors.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from rankpo.models.engine.maxsim import maxsim, paired_maxsim
from rankpo.models.engine.sparse_vectors import paired_products, products
from rankpo.types import Vectors

COLUMNS = 2  # The weight and the id of a token, after its vector.


def part_of(vectors: Vectors, part: str) -> Vectors:
    """One part, in its stored form, of rows [R, D + 2] on the CPU; see `HybridModel`."""
    rows, counts = vectors.rows, vectors.counts
    if part == "dense":
        return dense_of(rows[:, :-COLUMNS], counts)
    if part == "sparse":
        return sparse_of(rows[:, -1].numpy(), rows[:, -2].numpy(), counts)
    return tokens_of(rows[:, :-COLUMNS], counts)


def dense_of(rows: Tensor, counts: Tensor) -> Vectors:
    """The first row of each text; zeros for a text without rows."""
    made = torch.zeros(len(counts), rows.shape[1])
    filled = counts > 0
    made[filled] = rows[(counts.cumsum(0) - counts)[filled]].float()
    return Vectors(made, torch.ones(len(counts), dtype=torch.int64))


def sparse_of(ids: np.ndarray, weights: np.ndarray, counts: Tensor) -> Vectors:
    """The largest weight of each token id of each text, by ascending id; weights of 0 are left out."""
    owner = np.repeat(np.arange(len(counts)), counts.numpy())
    kept = np.flatnonzero(weights > 0)
    kept = kept[np.lexsort((-weights[kept], ids[kept], owner[kept]))]
    first = np.ones(len(kept), dtype=bool)
    first[1:] = (np.diff(owner[kept]) != 0) | (np.diff(ids[kept]) != 0)
    kept = kept[first]
    rows = np.stack([ids[kept].astype(np.float32), weights[kept].astype(np.float32)], 1)
    sizes = np.bincount(owner[kept], minlength=len(counts)).astype(np.int64)
    return Vectors(torch.from_numpy(rows), torch.from_numpy(sizes))


def tokens_of(rows: Tensor, counts: Tensor) -> Vectors:
    """All rows but the first of each text."""
    kept = torch.ones(len(rows), dtype=torch.bool)
    kept[(counts.cumsum(0) - counts)[counts > 0]] = False
    return Vectors(rows[kept].float(), (counts - 1).clamp(min=0))


def part_scores(part: str, queries: Vectors, candidates: Vectors, vocabulary: int, device: torch.device) -> Tensor:
    """[q, c] float32 scores of one part in stored form, on the CPU. device: for products of vectors."""
    if part == "sparse":
        return products(queries, candidates, vocabulary)
    left, right = _moved(queries, device), _moved(candidates, device)
    if part == "dense":
        return (left.rows @ right.rows.T).cpu()
    return (maxsim(left, right) / left.counts.clamp(min=1).to(device)[:, None]).cpu()


def paired_part_scores(
    part: str, queries: Vectors, candidates: Vectors, vocabulary: int, device: torch.device
) -> Tensor:
    """[n] float32 scores of query i with candidate i; otherwise as `part_scores`."""
    if part == "sparse":
        return paired_products(queries, candidates, vocabulary)
    left, right = _moved(queries, device), _moved(candidates, device)
    if part == "dense":
        return (left.rows * right.rows).sum(1).cpu()
    return (paired_maxsim(left, right) / left.counts.clamp(min=1).to(device)).cpu()


def weighted(scores: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The weighted sum of the scores of the parts."""
    return torch.stack([weights[part] * values for part, values in scores.items()]).sum(0)


def _moved(vectors: Vectors, device: torch.device) -> Vectors:
    return Vectors(vectors.rows.to(device), vectors.counts)
