"""RankNet loss: a logistic loss on every ordered pair."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankpo.losses.base import require_choice
from rankpo.losses.lists import ListLoss, gaps, mean_over, ordered_pairs, ranks
from rankpo.losses.maths import negative_log_sigmoid
from rankpo.types import Labels


@dataclass(frozen=True, kw_only=True)
class RankNetLoss(ListLoss):
    """Mean over pairs with y_i > y_j of c_ij·ℓ(s_i - s_j). Burges et al., ICML 2005, with P̄ = 1.

    weight, the c_ij: `none` 1; `difference` y_i - y_j; `rank` 1/(r_i + r_j) with the ranks by y from 1
    (https://arxiv.org/abs/2406.15657), not renormalised: FIRST multiplies the small result by 10.
    pool_pairs: the mean over all pairs of the update, in which long lists weigh more, instead of over lists.
    """

    weight: str = "none"
    pool_pairs: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(("none", "difference", "rank"), weight=self.weight)

    def list_weights(self, target: Tensor, labels: Labels) -> Tensor:
        if not self.pool_pairs:
            return super().list_weights(target, labels)
        return ordered_pairs(target, labels.mask).flatten(1).sum(1).float()

    def of_lists(self, scores: Tensor, target: Tensor, labels: Labels) -> Tensor:
        losses = self._pair_weights(target, labels.mask) * negative_log_sigmoid(gaps(scores))  # [B, G, G]
        return mean_over(losses, ordered_pairs(target, labels.mask))

    def _pair_weights(self, target: Tensor, mask: Tensor) -> Tensor:
        if self.weight == "difference":
            return gaps(target)
        if self.weight == "rank":
            r = ranks(target, mask)
            # Masked candidates have rank 0 and form no pairs; the replacement only avoids 1/0.
            return 1 / (r[:, :, None] + r[:, None, :]).clamp(min=1)
        return torch.ones_like(gaps(target))
