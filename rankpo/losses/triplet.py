"""Triplet loss: trains each positive to be nearer to the query than each negative, by at least a margin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rankpo.losses.base import require_choice, require_positive
from rankpo.losses.lists import mean_over
from rankpo.losses.matryoshka import matryoshka
from rankpo.losses.nested import NestedInBatchLoss
from rankpo.losses.pairs_of_update import DISTANCES, all_distances
from rankpo.losses.pool import Pool, build_pool
from rankpo.losses.vectors import Similarity, inner_products, one_each, taken
from rankpo.types import Batch, LossOutput, Vectors


@dataclass(frozen=True, kw_only=True)
class TripletLoss(NestedInBatchLoss):
    """Mean over triplets of max(0, d(q, p) - d(q, n) + margin). https://arxiv.org/abs/1503.03832 eq. 3.

    distance: `euclidean`, `manhattan`, or `cosine` (1 - cosine). negatives: `own`, the query's; `in_batch`, the
    passages of all queries of the update. Texts known to be relevant to the query are not negatives. margin: in units
    of the distance; the distance between embeddings of length 1 is at most 2, so that 5, the default of
    other libraries, is too large.
    """

    margin: float = 0.5
    distance: str = "cosine"
    negatives: str = "own"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(margin=self.margin)
        require_choice(DISTANCES, distance=self.distance)
        require_choice(("own", "in_batch"), negatives=self.negatives)

    @property
    def by_inner_products(self) -> bool:
        return False

    @property
    def knows(self) -> frozenset[str]:
        return frozenset({"positives"})

    def in_batch_weights(self, batch: Batch) -> Mapping[str, Tensor]:
        return {"loss": self._triplets(build_pool(batch, None, deduplicate=True)).sum(1).float()}

    def _triplets(self, pool: Pool) -> Tensor:
        """Returns a mask [b, P] that is True where passage P is a negative of query b."""
        if self.negatives == "own":
            return ~pool.known & pool.own
        return ~pool.known if pool.alone is None else ~pool.known & (pool.own | ~pool.alone[:, None])

    def in_batch(
        self,
        embeddings: Tensor | Vectors,
        batch: Batch,
        queries: Tensor | None = None,
        similarity: Similarity = inner_products,
    ) -> LossOutput:
        pool = build_pool(batch.on_cpu, queries, deduplicate=True)
        rows = one_each(embeddings, type(self).__name__)
        with torch.autocast(rows.device.type, enabled=False):
            return matryoshka(lambda cut: self._against(cut, pool), rows, self.matryoshka)

    def _against(self, embeddings: Tensor, pool: Pool) -> LossOutput:
        negatives, device = self._triplets(pool), embeddings.device  # On the CPU, where their number can be read.
        kept = negatives.to(device, non_blocking=True)
        counted = negatives.nonzero().T.to(device, non_blocking=True).unbind()
        asked = taken(taken(embeddings, pool.query_rows), pool.query)
        far = all_distances(asked, taken(embeddings, pool.rows), self.distance)  # [b, P]
        near = far.gather(1, pool.positive.to(device, non_blocking=True)[:, None])  # [b, 1]
        losses = (near - far + self.margin).clamp(min=0)
        metrics = {
            "scores/accuracies": (near < far)[counted].to(losses.dtype),
            "scores/active": (losses > 0)[counted].to(losses.dtype),
            "scores/margins": (far - near).detach()[counted],
        }
        return LossOutput(mean_over(losses, kept), kept.sum(1).to(losses.dtype), metrics)
