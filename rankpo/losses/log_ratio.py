"""Preference losses on the log-ratio h of each completion: APO, NCA, SPPO, BCO.

h = lp - reference lp. These losses need log-probabilities; `logps` selects how scores convert to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from rankpo.losses.base import Loss, require_choice, require_positive
from rankpo.losses.maths import LOGPS, logps_from_scores, negative_log_sigmoid
from rankpo.losses.pairs import fixed_reference, pair_metrics, pair_scores
from rankpo.types import Labels, LossOutput


@dataclass(frozen=True, kw_only=True)
class LogRatioLoss(Loss):
    """Base: subclasses compute losses of the rewards βh. scores, reference [B, 2], or [B, G] with `candidates`."""

    on_pairs: ClassVar[bool] = True

    beta: float = 0.1
    temperature: float = 1.0
    logps: str = "candidates"

    def __post_init__(self) -> None:
        require_positive(beta=self.beta, temperature=self.temperature)
        require_choice(LOGPS, logps=self.logps)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"reference"})

    def fitted(self, logps: str) -> Self:
        return replace(self, logps=logps) if self.logps == "auto" else self

    def rewards(self, scores: Tensor, labels: Labels, reference: Tensor | None) -> Tensor:
        """βh [B, 2] of chosen and rejected."""
        fixed = fixed_reference(self, reference)
        policy = logps_from_scores(scores, labels.mask, self.temperature, self.logps)
        return self.beta * (policy - logps_from_scores(fixed, labels.mask, self.temperature, self.logps))[:, :2]

    def of_rewards(self, chosen: Tensor, rejected: Tensor, labels: Labels) -> Tensor:
        """Losses [B] of the rewards βh_w and βh_l [B]."""
        raise TypeError(f"{type(self).__name__} has no formula")

    def __call__(self, scores: Tensor, labels: Labels, reference: Tensor | None = None) -> LossOutput:
        scores = pair_scores(scores)
        rewards = self.rewards(scores, labels, reference)
        losses = self.of_rewards(rewards[:, 0], rewards[:, 1], labels)
        return LossOutput(losses, self.weights(labels)["loss"], pair_metrics(scores, rewards, labels.lengths))


@dataclass(frozen=True, kw_only=True)
class APOZeroLoss(LogRatioLoss):
    """1 - σ(βh_w) + σ(βh_l), for chosen texts better than the policy's samples. https://arxiv.org/abs/2408.06266."""

    def of_rewards(self, chosen: Tensor, rejected: Tensor, labels: Labels) -> Tensor:
        return torch.sigmoid(-chosen) + torch.sigmoid(rejected)


@dataclass(frozen=True, kw_only=True)
class APODownLoss(LogRatioLoss):
    """σ(βh_w) + 1 - σ(βh_w - βh_l), for policies whose samples are better than the chosen texts. 2408.06266."""

    def of_rewards(self, chosen: Tensor, rejected: Tensor, labels: Labels) -> Tensor:
        return torch.sigmoid(chosen) + torch.sigmoid(rejected - chosen)


@dataclass(frozen=True, kw_only=True)
class NCALoss(LogRatioLoss):
    """ℓ(βh_w) + ½ℓ(-βh_w) + ½ℓ(-βh_l), which keeps the chosen text likely. https://arxiv.org/abs/2402.05369."""

    beta: float = 0.01

    def of_rewards(self, chosen: Tensor, rejected: Tensor, labels: Labels) -> Tensor:
        noise = negative_log_sigmoid(-chosen) + negative_log_sigmoid(-rejected)
        return negative_log_sigmoid(chosen) + noise / 2


@dataclass(frozen=True, kw_only=True)
class SPPOLoss(LogRatioLoss):
    """(h_w - (P - ½)/β)² + (h_l + (P - ½)/β)², P = the chosen one's win rate. https://arxiv.org/abs/2405.00675.

    win_rate: `certain`, P = 1, the paper's hard form; `confidence`, P = the pair's confidence. A confidence
    below ½ counts as ½, as in all losses with confidences: it expresses doubt about the label and must not invert the
    preference.
    """

    beta: float = 0.001  # 1/η of the paper; cosines need 0.1 or more.
    win_rate: str = "certain"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(("certain", "confidence"), win_rate=self.win_rate)

    def of_rewards(self, chosen: Tensor, rejected: Tensor, labels: Labels) -> Tensor:
        advantage = 0.5 if self.win_rate == "certain" else labels.confidence.to(chosen).clamp(0.5, 1.0) - 0.5
        return ((chosen - advantage).square() + (rejected + advantage).square()) / self.beta**2


@dataclass(frozen=True, kw_only=True)
class BCOLoss(LogRatioLoss):
    """ℓ(βh_w - δ) + ℓ(-(βh_l - δ)): a binary classifier of rewards. https://arxiv.org/abs/2404.04656.

    δ is the mean of `rewards/chosen` and `rewards/rejected` over all previous updates, 0 before the first. The
    authors' code includes the current micro-batch in δ, which would make the loss depend on the micro-batch size.
    """

    beta: float = 0.01

    def initial_state(self) -> dict[str, float]:
        return {"delta": 0.0, "num_pairs": 0.0}

    def next_state(self, state: Mapping[str, float], means: Mapping[str, float], num_queries: int) -> dict[str, float]:
        mean = (means["rewards/chosen"] + means["rewards/rejected"]) / 2
        count = state["num_pairs"] + num_queries
        return {"delta": state["delta"] + (mean - state["delta"]) * num_queries / count, "num_pairs": count}

    def __call__(
        self,
        scores: Tensor,
        labels: Labels,
        reference: Tensor | None = None,
        *,
        state: Mapping[str, float] | None = None,
    ) -> LossOutput:
        scores = pair_scores(scores)
        rewards = self.rewards(scores, labels, reference)
        delta = state["delta"] if state else 0.0
        losses = negative_log_sigmoid(rewards[:, 0] - delta) + negative_log_sigmoid(delta - rewards[:, 1])
        metrics = pair_metrics(scores, rewards, labels.lengths)
        metrics["rewards/delta"] = rewards.new_full((), delta)
        return LossOutput(losses, self.weights(labels)["loss"], metrics)
