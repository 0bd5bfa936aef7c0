"""PairwiseInBatchLoss: the base of losses on labelled pairs of texts, each pair a query and one of its candidates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rankpo.losses.maths import at_least_float32
from rankpo.losses.matryoshka import matryoshka
from rankpo.losses.nested import NestedInBatchLoss
from rankpo.losses.vectors import Similarity, inner_products, one_each
from rankpo.types import Batch, LossOutput, Vectors

DISTANCES = ("cosine", "euclidean", "manhattan")


@dataclass(frozen=True)
class Pairs:
    """All n pairs of an update, on the CPU. owner [n]: index of the query in the batch. left, right [n]: rows of
    `Batch.sequences`. labels [n]: the relevance in the data."""

    owner: Tensor
    left: Tensor
    right: Tensor
    labels: Tensor


def pairs_of(batch: Batch) -> Pairs:
    """Pairs each query with its unmasked candidates. Raises ValueError for models without query embeddings."""
    if batch.queries is None:
        raise ValueError(
            "labelled pairs need an embedding of each text, but this model encodes query and candidate together"
        )
    batch = batch.on_cpu
    assert batch.queries is not None
    owner, column = batch.labels.mask.nonzero(as_tuple=True)
    known = batch.labels.relevance if batch.labels.grades is None else batch.labels.grades
    labels = at_least_float32(known)[owner, column]
    return Pairs(owner, batch.queries[owner], batch.candidates[owner, column], labels)


@dataclass(frozen=True, kw_only=True)
class PairwiseInBatchLoss(NestedInBatchLoss):
    """Base: subclasses compute the terms of pairs and check the labels.

    The value of an update depends only on its set of pairs, not on their grouping by query.
    """

    @property
    def by_inner_products(self) -> bool:
        return False

    def check(self, labels: Tensor) -> None:
        """Raises ValueError for labels [n] outside the domain of the loss."""

    def of_update(self, embeddings: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Returns losses [n] and scores [n] of embeddings [N, D]."""
        raise TypeError(f"{type(self).__name__} has no formula")

    def in_batch_weights(self, batch: Batch) -> Mapping[str, Tensor]:
        pairs = pairs_of(batch)
        self.check(pairs.labels)
        return {"loss": batch.labels.mask.sum(1).float()}

    def in_batch(
        self,
        embeddings: Tensor | Vectors,
        batch: Batch,
        queries: Tensor | None = None,
        similarity: Similarity = inner_products,
    ) -> LossOutput:
        pairs = pairs_of(batch)
        queries = torch.arange(len(batch), device=pairs.owner.device) if queries is None else queries
        chosen = torch.zeros(len(batch), dtype=torch.bool, device=pairs.owner.device)
        chosen[queries] = True
        asked = chosen[pairs.owner].nonzero().squeeze(1)
        counts = batch.labels.mask.sum(1)  # [B]
        rows = one_each(embeddings, type(self).__name__)
        owner, places, kept = (item.to(rows.device, non_blocking=True) for item in (pairs.owner[asked], asked, queries))

        def of(rows: Tensor) -> LossOutput:
            losses, scores = self.of_update(rows, pairs)
            sums = torch.zeros_like(counts, dtype=losses.dtype).index_add(0, owner, losses[places])
            weights = counts.to(losses.dtype)
            means = sums / weights.clamp(min=1)
            return LossOutput(means[kept], weights[kept], {"scores/mean": scores.detach()[places]})

        with torch.autocast(rows.device.type, enabled=False):
            return matryoshka(of, rows, self.matryoshka)


def cosines(left: Tensor, right: Tensor) -> Tensor:
    """Cosines [n] of rows [n, D]; 0 for a row of zeros."""
    return (normalize(left, dim=1) * normalize(right, dim=1)).sum(1)


def distances(left: Tensor, right: Tensor, kind: str) -> Tensor:
    """Distances [n] of rows [n, D]: `cosine`, 1 - cosine; `euclidean`; `manhattan`. Equal rows: 0 with gradient 0."""
    if kind == "cosine":
        return 1 - cosines(left, right)
    return torch.linalg.vector_norm(left - right, ord=2 if kind == "euclidean" else 1, dim=1)


def all_distances(left: Tensor, right: Tensor, kind: str) -> Tensor:
    """Distances [a, b] of rows [a, D] and [b, D]; see `distances`."""
    if kind == "cosine":
        return 1 - normalize(left, dim=1) @ normalize(right, dim=1).T
    # The product form of the Euclidean distance is inaccurate for near texts.
    norm, mode = (2.0, "donot_use_mm_for_euclid_dist") if kind == "euclidean" else (1.0, "use_mm_for_euclid_dist")
    return torch.cdist(left, right, p=norm, compute_mode=mode)
