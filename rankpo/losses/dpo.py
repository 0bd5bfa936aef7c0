"""DPO loss and variants, which depend on a pair only through its gap D against the reference.

D = h_w - h_l with h = (score - reference score)/τ. The query's normaliser cancels in the gap, so these losses apply to
scores of embedding models and rerankers as well as to log-probabilities of causal language models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import log
from typing import ClassVar, Self

import torch
from torch import Tensor

from rankpo.losses.base import Loss, require_choice, require_not_negative, require_positive
from rankpo.losses.maths import LOGPS, logps_from_scores, negative_log_sigmoid
from rankpo.losses.pairs import (
    check_preference,
    chosen_nll,
    fixed_reference,
    gap,
    pair_metrics,
    pair_scores,
    per_token,
    preference,
    weights_of_means,
)
from rankpo.types import Labels, LossOutput, Term


@dataclass(frozen=True, kw_only=True)
class DPOLoss(Loss):
    """(1 - ε)ℓ(βD) + εℓ(-βD), https://arxiv.org/abs/2305.18290 eq. 7; hinge: max(0, 1 - βD), 2309.06657.

    scores, reference [B, 2]; with `labels.lengths`, log-probabilities of a causal language model.
    label_smoothing: ε, the share of flipped labels. sft_weight: adds the chosen one's mean negative log-probability
    as the term "sft" (2404.19733); `logps` is the conversion of scores to log-probabilities for it.
    """

    on_pairs: ClassVar[bool] = True

    beta: float = 0.1
    temperature: float = 1.0  # Embedding models need their training temperature, since a cosine gap is at most 4.
    kind: str = "sigmoid"
    label_smoothing: float = 0.0
    sft_weight: float = 0.0
    logps: str = "candidates"

    def __post_init__(self) -> None:
        require_positive(beta=self.beta, temperature=self.temperature)
        require_not_negative(sft_weight=self.sft_weight)
        require_choice(LOGPS, logps=self.logps)
        check_preference(self.kind, self.label_smoothing)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"reference"})

    def fitted(self, logps: str) -> Self:
        return replace(self, logps=logps) if self.logps == "auto" else self

    def weights(self, labels: Labels) -> Mapping[str, Tensor]:
        ones = super().weights(labels)["loss"]
        return {"loss": ones, "sft": ones} if self.sft_weight else {"loss": ones}

    def of_gap(self, z: Tensor) -> Tensor:
        """Losses [B] of the scaled gaps z = βD [B]."""
        return preference(z, self.kind, self.label_smoothing)

    def __call__(self, scores: Tensor, labels: Labels, reference: Tensor | None = None) -> LossOutput:
        scores = pair_scores(scores)
        rewards = self.beta * (scores - fixed_reference(self, reference)) / self.temperature  # [B, 2]
        weights = self.weights(labels)
        terms = {}
        if self.sft_weight:
            logps = logps_from_scores(scores, labels.mask, self.temperature, self.logps)
            terms["sft"] = Term(chosen_nll(logps, labels.lengths, "mean"), weights["sft"], self.sft_weight)
        return LossOutput(
            self.of_gap(gap(rewards)), weights["loss"], pair_metrics(scores, rewards, labels.lengths), terms
        )


@dataclass(frozen=True, kw_only=True)
class CDPOLoss(DPOLoss):
    """DPO for labels with error rate ε: https://ericmitchell.ai/cdpo.pdf. Its minimum is at σ(βD) = 1 - ε."""

    label_smoothing: float = 0.2  # The value is that of HALOs.


@dataclass(frozen=True, kw_only=True)
class RobustDPOLoss(DPOLoss):
    """[(1 - ε)ℓ(βD) - εℓ(-βD)] / (1 - 2ε): unbiased under flips with probability ε, so it may be negative.

    https://arxiv.org/abs/2403.00409.
    """

    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(("sigmoid",), kind=self.kind)

    def of_gap(self, z: Tensor) -> Tensor:
        flipped = self.label_smoothing
        kept = (1 - flipped) * negative_log_sigmoid(z) - flipped * negative_log_sigmoid(-z)
        return kept / (1 - 2 * flipped)


@dataclass(frozen=True, kw_only=True)
class EXOLoss(Loss):
    """KL(policy's choice ‖ smoothed label), z = βD: σ(z)[log σ(z) - log(1-ε)] + σ(-z)[log σ(-z) - log ε].

    https://arxiv.org/abs/2402.00856, with two completions. scores, reference [B, 2].
    """

    on_pairs: ClassVar[bool] = True

    beta: float = 0.1
    temperature: float = 1.0
    label_smoothing: float = 0.001  # The value is that of TRL; with 0 every loss would be infinite.

    def __post_init__(self) -> None:
        require_positive(beta=self.beta, temperature=self.temperature, label_smoothing=self.label_smoothing)
        check_preference("sigmoid", self.label_smoothing)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"reference"})

    def __call__(self, scores: Tensor, labels: Labels, reference: Tensor | None = None) -> LossOutput:
        scores = pair_scores(scores)
        rewards = self.beta * (scores - fixed_reference(self, reference)) / self.temperature  # [B, 2]
        z = gap(rewards)
        right = torch.sigmoid(z) * (-negative_log_sigmoid(z) - log(1 - self.label_smoothing))
        wrong = torch.sigmoid(-z) * (-negative_log_sigmoid(-z) - log(self.label_smoothing))
        return LossOutput(right + wrong, self.weights(labels)["loss"], pair_metrics(scores, rewards, labels.lengths))


@dataclass(frozen=True, kw_only=True)
class IPOLoss(Loss):
    """(h̄_w - h̄_l - 1/(2β))², h̄ the log-ratio per token: https://arxiv.org/abs/2310.12036 eq. 17.

    scores, reference [B, 2]; with `labels.lengths`, log-probabilities of a causal language model. The key `lengths`:
    `mean` divides each log-ratio by its own length, and a pair with an empty completion has weight 0; `sum` is
    the paper's literal form.
    """

    on_pairs: ClassVar[bool] = True

    beta: float = 0.1  # The paper calls it τ.
    temperature: float = 1.0
    lengths: str = "mean"

    def __post_init__(self) -> None:
        require_positive(beta=self.beta, temperature=self.temperature)
        require_choice(("mean", "sum"), lengths=self.lengths)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"reference"})

    def weights(self, labels: Labels) -> Mapping[str, Tensor]:
        return weights_of_means(labels) if self.lengths == "mean" else super().weights(labels)

    def __call__(self, scores: Tensor, labels: Labels, reference: Tensor | None = None) -> LossOutput:
        scores = pair_scores(scores)
        ratios = (scores - fixed_reference(self, reference)) / self.temperature  # [B, 2]
        # The mean counts all tokens. A mean over tokens with a non-zero log-ratio would be 0/0 at step 0.
        compared = per_token(ratios, labels.lengths) if self.lengths == "mean" else ratios
        losses = (gap(compared) - 1 / (2 * self.beta)).square()
        return LossOutput(
            losses, self.weights(labels)["loss"], pair_metrics(scores, self.beta * compared, labels.lengths)
        )
