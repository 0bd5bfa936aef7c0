"""Preference losses without a reference model: SimPO, CPO, ORPO, SLiC.

lp = log-probability of a completion, lp̄ = its mean per scored token (`labels.lengths` [B, 2]; lp itself without them).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor

from rankpo.losses.base import Loss, require_choice, require_not_negative, require_positive
from rankpo.losses.maths import LOGPS, candidate_log_odds, log1mexp, logps_from_scores, negative_log_sigmoid
from rankpo.losses.pairs import chosen_nll, gap, pair_metrics, pair_scores, per_token, weights_of_means
from rankpo.types import Labels, LossOutput

NLL = ("mean", "sum")


@dataclass(frozen=True, kw_only=True)
class SimPOLoss(Loss):
    """ℓ(β(lp̄_w - lp̄_l - margin)), https://arxiv.org/abs/2405.14734 eq. 6. scores [B, 2].

    A pair in which a completion has no scored token has weight 0.
    """

    on_pairs: ClassVar[bool] = True

    beta: float = 2.5
    temperature: float = 1.0
    margin: float = 0.55  # γ/β, as in the authors' code.

    def __post_init__(self) -> None:
        require_positive(beta=self.beta, temperature=self.temperature)
        require_not_negative(margin=self.margin)

    def weights(self, labels: Labels) -> Mapping[str, Tensor]:
        return weights_of_means(labels)

    def __call__(self, scores: Tensor, labels: Labels, reference: Tensor | None = None) -> LossOutput:
        scores = pair_scores(scores)
        rewards = self.beta * per_token(scores, labels.lengths) / self.temperature  # [B, 2]
        losses = negative_log_sigmoid(gap(rewards) - self.beta * self.margin)
        return LossOutput(losses, self.weights(labels)["loss"], pair_metrics(scores, rewards, labels.lengths))


@dataclass(frozen=True, kw_only=True)
class CPOLoss(Loss):
    """ℓ(β(lp_w - lp_l)) + α·nll_w, https://arxiv.org/abs/2401.08417. scores [B, 2].

    nll: negative log-probability of the chosen one per token (`mean`) or summed. logps: see `logps_from_scores`.
    """

    on_pairs: ClassVar[bool] = True

    beta: float = 0.1
    temperature: float = 1.0
    alpha: float = 1.0
    nll: str = "mean"
    logps: str = "candidates"

    def __post_init__(self) -> None:
        require_positive(beta=self.beta, temperature=self.temperature)
        require_not_negative(alpha=self.alpha)
        require_choice(NLL, nll=self.nll)
        require_choice(LOGPS, logps=self.logps)

    def fitted(self, logps: str) -> Self:
        return replace(self, logps=logps) if self.logps == "auto" else self

    def __call__(self, scores: Tensor, labels: Labels, reference: Tensor | None = None) -> LossOutput:
        scores = pair_scores(scores)
        logps = logps_from_scores(scores, labels.mask, self.temperature, self.logps)
        preferred = negative_log_sigmoid(self.beta * gap(logps))
        imitated = self.alpha * chosen_nll(logps, labels.lengths, self.nll)
        return _sum(self, labels, preferred, imitated, pair_metrics(scores, self.beta * logps, labels.lengths))


@dataclass(frozen=True, kw_only=True)
class ORPOLoss(Loss):
    """nll_w + λℓ(o_w - o_l), log-odds o = lp̄ - log(1 - e^lp̄): https://arxiv.org/abs/2403.07691 eqs. 6 and 7.

    scores [B, 2]. The log-odds use means, because sums would reward length. A pair in which a completion has no
    scored token has weight 0.
    """

    on_pairs: ClassVar[bool] = True

    lambda_: float = 0.1
    temperature: float = 1.0
    nll: str = "mean"
    logps: str = "candidates"

    def __post_init__(self) -> None:
        require_positive(temperature=self.temperature)
        require_not_negative(lambda_=self.lambda_)
        require_choice(NLL, nll=self.nll)
        require_choice(LOGPS, logps=self.logps)

    def fitted(self, logps: str) -> Self:
        return replace(self, logps=logps) if self.logps == "auto" else self

    def __call__(self, scores: Tensor, labels: Labels, reference: Tensor | None = None) -> LossOutput:
        scores = pair_scores(scores)
        logps = logps_from_scores(scores, labels.mask, self.temperature, self.logps)
        means = per_token(logps, labels.lengths)
        preferred = self.lambda_ * negative_log_sigmoid(gap(self._log_odds(scores, means, labels)))
        metrics = pair_metrics(scores, self.lambda_ * means, labels.lengths)  # λ replaces β, as in TRL's logs.
        return _sum(self, labels, preferred, chosen_nll(logps, labels.lengths, self.nll), metrics)

    def weights(self, labels: Labels) -> Mapping[str, Tensor]:
        return weights_of_means(labels)

    def _log_odds(self, scores: Tensor, means: Tensor, labels: Labels) -> Tensor:
        """log p - log(1 - p) [B, 2 or more], computed without 1 - p, which rounds to 0 from 16 nats in float32."""
        if labels.lengths is None and self.logps == "candidates":
            return candidate_log_odds(scores / self.temperature, labels.mask)
        if labels.lengths is None and self.logps == "sigmoid":
            return scores / self.temperature
        return means - log1mexp(means)


@dataclass(frozen=True, kw_only=True)
class SLiCLoss(Loss):
    """max(0, δ - lp_w + lp_l) + λ·nll_w, https://arxiv.org/abs/2305.10425 eq. 1 with the chosen text as target.

    scores [B, 2]. delta: δ in nats. Rewards are log-probabilities, without β.
    """

    on_pairs: ClassVar[bool] = True

    delta: float = 1.0
    lambda_: float = 0.1
    temperature: float = 1.0
    nll: str = "sum"  # The value is that of HALOs.
    logps: str = "candidates"

    def __post_init__(self) -> None:
        require_positive(delta=self.delta, temperature=self.temperature)
        require_not_negative(lambda_=self.lambda_)
        require_choice(NLL, nll=self.nll)
        require_choice(LOGPS, logps=self.logps)

    def fitted(self, logps: str) -> Self:
        return replace(self, logps=logps) if self.logps == "auto" else self

    def __call__(self, scores: Tensor, labels: Labels, reference: Tensor | None = None) -> LossOutput:
        scores = pair_scores(scores)
        logps = logps_from_scores(scores, labels.mask, self.temperature, self.logps)
        preferred = (self.delta - gap(logps)).clamp(min=0)
        imitated = self.lambda_ * chosen_nll(logps, labels.lengths, self.nll)
        return _sum(self, labels, preferred, imitated, pair_metrics(scores, logps, labels.lengths))


def _sum(loss: Loss, labels: Labels, preferred: Tensor, imitated: Tensor, metrics: dict[str, Tensor]) -> LossOutput:
    """Returns the sum of two losses [B] with a common denominator, and logs both."""
    parts = {"loss/preference": preferred.detach(), "loss/sft": imitated.detach()}
    return LossOutput(preferred + imitated, loss.weights(labels)["loss"], metrics | parts)
