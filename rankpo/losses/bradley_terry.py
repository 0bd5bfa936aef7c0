"""The Bradley-Terry model of pairwise preferences, as a loss on scalar rewards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rankpo.losses.base import Loss, require_not_negative, require_positive
from rankpo.losses.maths import negative_log_sigmoid
from rankpo.losses.pairs import gap, pair_metrics, pair_scores
from rankpo.types import Labels, LossOutput


@dataclass(frozen=True, kw_only=True)
class BradleyTerryLoss(Loss):
    """ℓ(f_w - f_l - margin) + center·(f_w + f_l)², f = score/τ; https://arxiv.org/abs/2203.02155 eq. 1.

    scores [B, 2]. center: keeps rewards near 0, since the gap is invariant to shifts (2312.09244); .01 is usual.
    """

    on_pairs: ClassVar[bool] = True

    temperature: float = 1.0
    margin: float = 0.0
    center: float = 0.0

    def __post_init__(self) -> None:
        require_positive(temperature=self.temperature)
        require_not_negative(margin=self.margin, center=self.center)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"reward_head"})  # The loss is defined on rewards, not on log-probabilities.

    def __call__(self, scores: Tensor, labels: Labels, reference: Tensor | None = None) -> LossOutput:
        scores = pair_scores(scores)
        rewards = scores[:, :2] / self.temperature
        losses = negative_log_sigmoid(gap(rewards) - self.margin) + self.center * rewards.sum(1).square()
        return LossOutput(losses, self.weights(labels)["loss"], pair_metrics(scores, rewards))
