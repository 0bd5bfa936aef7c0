"""Vectors of texts for in-batch losses, with one or several vectors per text."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rankpo.losses.maths import at_least_float32
from rankpo.types import Vectors

Similarity = Callable[[Vectors, Vectors], Tensor]  # Returns scores [q, c] with gradient.


def taken(values: Tensor, rows: Tensor) -> Tensor:
    """values[rows] without a wait for the device of values. rows: int64, on the CPU."""
    return values[rows.to(values.device, non_blocking=True)]


def inner_products(queries: Vectors, candidates: Vectors) -> Tensor:
    """Inner products [q, c] of texts with one vector each."""
    return queries.rows @ candidates.rows.T


def as_vectors(embeddings: Tensor | Vectors) -> Vectors:
    """Converts to `Vectors` in at least float32. A tensor [N, D] holds one vector for each text."""
    if isinstance(embeddings, Vectors):
        return Vectors(at_least_float32(embeddings.rows), embeddings.counts)
    return Vectors(at_least_float32(embeddings), torch.ones(len(embeddings), dtype=torch.int64))


def one_each(embeddings: Tensor | Vectors, name: str) -> Tensor:
    """Returns [N, D] in at least float32; ValueError for texts with several vectors. name: the loss's name."""
    vectors = as_vectors(embeddings)
    if not vectors.single:
        raise ValueError(
            f"{name} needs one vector per text, but this model has several; choose a loss on scores, such "
            "as loss=contrastive, or kind=embedding"
        )
    return vectors.rows
