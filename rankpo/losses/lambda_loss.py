"""LambdaLoss family with LambdaRank: RankNet's pairs, weighted by the change of nDCG when they swap."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from rankpo.losses.base import require_choice, require_positive
from rankpo.losses.lists import (
    LARGEST_GRADE,
    ListLoss,
    both,
    gain,
    gaps,
    ideal_dcg,
    mean_over,
    ordered_pairs,
    positions,
)
from rankpo.losses.maths import negative_log_sigmoid
from rankpo.types import Labels

SCHEMES = ("none", "lambdarank", "ndcg1", "ndcg2", "ndcg2pp")


@dataclass(frozen=True, kw_only=True)
class LambdaLoss(ListLoss):
    """Mean over pairs with y_i > y_j of w_ij·ℓ(s_i - s_j)/ln 2. Wang et al., The LambdaLoss Framework, CIKM 2018.

    With i the position of a candidate by score from 1, D_i = log2(1 + i) and G = (2^y - 1)/maxDCG@k, w_ij is
    `none` 1; `lambdarank` |1/D_i - 1/D_j|·|G_i - G_j|; `ndcg1` G_i/D_i, over all i ≠ j; `ndcg2`
    |1/D_d - 1/D_{d+1}|·|G_i - G_j| with d = |i - j|; `ndcg2pp` mu·ndcg2 + lambdarank. Weights are constants.
    y is the relevance times grade_scale. A dataset with min_label and max_label scales its labels to [0, 1], and the
    gains become flat: grades 1 and 3 of 0 to 3 have gains .26 and 1, and raw 1 and 7. grade_scale = max_label -
    min_label restores the raw gains, those of evaluations; 1 keeps the relevance unchanged. It affects only the gains and
    the logged ndcg@10. k: restricts to pairs with at least one candidate among the first k by score; None for all.
    log: base of the logistic loss, "2" as in the paper, or "e". pool_pairs: see RankNetLoss; it excludes k, since it
    counts pairs by labels alone.
    Raises ValueError for grades below 0 or above 30.
    """

    scheme: str = "ndcg2pp"
    mu: float = 10.0
    k: int | None = None
    log: str | int = "2"
    pool_pairs: bool = False
    grade_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(SCHEMES, scheme=self.scheme)
        require_choice(("2", "e"), log=str(self.log))
        require_positive(mu=self.mu, grade_scale=self.grade_scale)
        if self.k is not None and self.k < 1:
            raise ValueError(f"k must be >= 1 or null, got {self.k}")
        if self.k is not None and self.pool_pairs:
            raise ValueError(
                f"pool_pairs=true counts pairs by labels, but k={self.k} selects them by score; set only one of the two"
            )

    def check(self, target: Tensor, mask: Tensor) -> None:
        outside = target[(target < 0) | (target > LARGEST_GRADE)]
        if len(outside):
            raise ValueError(
                f"LambdaLoss needs a {self.target} in [0, {LARGEST_GRADE}] for the gains 2^y - 1, got "
                f"{float(outside[0]):g}; set datasets.<name>.min_label and max_label to the range of its labels"
                + (f", or lower loss.grade_scale={self.grade_scale:g}" if self.grade_scale != 1 else "")
            )

    def target_of(self, labels: Labels) -> Tensor:
        return super().target_of(labels) * self.grade_scale

    def list_weights(self, target: Tensor, labels: Labels) -> Tensor:
        if not self.pool_pairs:
            return super().list_weights(target, labels)
        return self._pairs(target, labels.mask).flatten(1).sum(1).float()

    def _pairs(self, target: Tensor, mask: Tensor) -> Tensor:
        if self.scheme != "ndcg1":
            return ordered_pairs(target, mask)
        diagonal = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
        return both(mask) & ~diagonal

    def of_lists(self, scores: Tensor, target: Tensor, labels: Labels) -> Tensor:
        mask = labels.mask
        place = positions(scores.detach(), target, mask)
        pairs = self._pairs(target, mask)
        if self.k is not None:
            first = place <= self.k
            pairs = pairs & (first[:, :, None] | first[:, None, :])
        weights = self._pair_weights(place, target, mask)  # [B, G, G]
        losses = weights * negative_log_sigmoid(gaps(scores))
        return mean_over(losses, pairs) / (log(2) if str(self.log) == "2" else 1.0)

    def _pair_weights(self, place: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        if self.scheme == "none":
            return torch.ones_like(gaps(target))
        ideal = ideal_dcg(target, mask, self.k or mask.shape[1])
        gains = gain(target, mask) / torch.where(ideal > 0, ideal, 1.0)[:, None]  # [B, G]
        discount = 1 / torch.log2(1 + place.to(target.dtype))
        if self.scheme == "ndcg1":
            return (gains * discount)[:, :, None].expand(gaps(gains).shape)
        difference = gaps(gains).abs()
        lambdarank = gaps(discount).abs() * difference
        if self.scheme == "lambdarank":
            return lambdarank
        distance = gaps(place).abs().clamp(min=1).to(target.dtype)  # The diagonal has no pairs.
        ndcg2 = (1 / torch.log2(1 + distance) - 1 / torch.log2(2 + distance)).abs() * difference
        return ndcg2 if self.scheme == "ndcg2" else self.mu * ndcg2 + lambdarank
