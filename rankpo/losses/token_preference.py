"""Preference losses with a divergence over the vocabulary at every token: TDPO and Ra-DPO."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rankpo.losses.base import Loss, require_not_negative, require_positive
from rankpo.losses.maths import at_least_float32, negative_log_sigmoid
from rankpo.losses.pairs import fixed_reference, gap, pair_metrics, pair_scores
from rankpo.losses.risk import RiskMeasure, kl
from rankpo.types import Labels, LossOutput


@dataclass(frozen=True, kw_only=True)
class TokenPreferenceLoss(Loss):
    """Base: ℓ(βz) with u = lp - reference lp of the completion and K its divergence, summed over its positions:

    variant 1: z = (u_w - u_l) - (K_l - K_w), https://arxiv.org/abs/2404.11999 eq. 16;
    variant 2: z = (u_w - u_l) - α(K_l - sg(K_w)), eq. 17.

    scores, reference [B, 2]: log-probabilities of the completions. divergences: K [B, 2] by name of `measures`,
    with gradient.
    """

    on_pairs: ClassVar[bool] = True

    beta: float = 0.1
    alpha: float = 0.5  # Used by variant 2.
    variant: int = 1

    def __post_init__(self) -> None:
        require_positive(beta=self.beta)
        require_not_negative(alpha=self.alpha)
        if self.variant not in (1, 2):
            raise ValueError(f"variant must be 1 or 2, got {self.variant!r}")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"reference", "live_reference", "token_logps"})

    @property
    def main_divergence(self) -> str:
        """The name of K among `measures`."""
        return "kl"

    @property
    def measures(self) -> Mapping[str, Callable[[Tensor, Tensor], Tensor]]:
        """Divergences to compute at every scored position, by name: (reference_logps, policy_logps) [n, V] to [n]."""
        return {"kl": kl}

    def __call__(
        self,
        scores: Tensor,
        labels: Labels,
        reference: Tensor | None = None,
        *,
        divergences: Mapping[str, Tensor] | None = None,
    ) -> LossOutput:
        if divergences is None:
            raise ValueError(f"{type(self).__name__} needs divergences over the vocabulary, got None")
        scores = pair_scores(scores)
        ratios = scores - fixed_reference(self, reference)  # u [B, 2]
        sums = {name: at_least_float32(values) for name, values in divergences.items()}
        losses = negative_log_sigmoid(self.beta * (gap(ratios) - self._penalty(sums[self.main_divergence])))
        metrics = pair_metrics(scores, self.beta * ratios, labels.lengths)
        for name, values in sums.items():
            metrics.update(divergence_metrics(name, ratios.detach(), values.detach()))
        return LossOutput(losses, self.weights(labels)["loss"], metrics)

    def _penalty(self, divergence: Tensor) -> Tensor:
        """Returns the penalty [B] subtracted from the gap of log-ratios. divergence: K [B, 2]."""
        chosen, rejected = divergence[:, 0], divergence[:, 1]
        if self.variant == 1:
            return rejected - chosen
        # The chosen completion's divergence is a constant; only the rejected one's has a gradient.
        return self.alpha * (rejected - chosen.detach())


@dataclass(frozen=True, kw_only=True)
class TDPOLoss(TokenPreferenceLoss):
    """Token-level DPO: K = Σ_t KL(reference ‖ policy). https://arxiv.org/abs/2404.11999."""

    if_tdpo2: bool | None = None  # The authors' flag for variant 2.

    def __post_init__(self) -> None:
        _take_variant(self, "if_tdpo2", self.if_tdpo2)
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class RaDPOLoss(TokenPreferenceLoss):
    """Risk-aware DPO: K is the sum of a risk measure of log(reference/policy). https://arxiv.org/abs/2505.20359.

    divergence: `cvar`, the mean of the upper tail of mass confidence_level; `erm`, the entropic risk with erm_mu;
    `kl`, which makes this TDPO; `cvar_lower`, the tail as printed in the paper; `published_code`, the authors' code.
    """

    divergence: str = "cvar"
    confidence_level: float = 0.95
    erm_mu: float = 1.0
    published_split: bool = True
    if_ra_dpo2: bool | None = None  # The authors' flag for variant 2.

    def __post_init__(self) -> None:
        _take_variant(self, "if_ra_dpo2", self.if_ra_dpo2)
        super().__post_init__()
        _ = self.measures

    @property
    def main_divergence(self) -> str:
        return "risk"

    @property
    def measures(self) -> Mapping[str, Callable[[Tensor, Tensor], Tensor]]:
        risk = RiskMeasure(
            divergence=self.divergence,
            confidence_level=self.confidence_level,
            erm_mu=self.erm_mu,
            published_split=self.published_split,
        )
        return {"risk": risk, "kl": kl}  # KL serves to compare runs at equal KL.


def _take_variant(loss: TokenPreferenceLoss, alias: str, flag: bool | None) -> None:
    """Sets `variant` from the authors' flag; raises ValueError if both are given and disagree."""
    if flag is None:
        return
    wanted = 2 if flag else 1
    if loss.variant not in (1, wanted):
        raise ValueError(f"{alias}={flag} and variant={loss.variant} contradict each other; set only one of them")
    object.__setattr__(loss, "variant", wanted)


def divergence_metrics(name: str, ratios: Tensor, sums: Tensor) -> dict[str, Tensor]:
    """Sums per completion, their gap, and the authors' accuracy, which counts the divergence as a reward."""
    return {
        f"{name}/chosen": sums[:, 0],
        f"{name}/rejected": sums[:, 1],
        f"{name}/margins": gap(sums),
        f"{name}/accuracies": (gap(ratios + sums) > 0).to(sums.dtype),
    }
