"""KTO loss: Kahneman-Tversky optimisation on single desirable or undesirable completions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from rankpo.losses.base import Loss, require_choice, require_positive, require_reference
from rankpo.losses.maths import LOGPS, at_least_float32, negative_log_sigmoid
from rankpo.types import Labels, LossOutput

BALANCED = (1.0, 4 / 3)  # Advised range of w_D n_D : w_U n_U, https://arxiv.org/abs/2402.01306 section 4.2.


def reference_point(mismatched: Tensor) -> Tensor:
    """z0 = max(0, mean of the log-ratios h(x_i, y_j) of mismatched prompts and completions), a constant.

    mismatched: log-ratios [n] of the whole update. Raises ValueError if n = 0.
    """
    if not mismatched.numel():
        raise ValueError("the reference point needs at least one mismatched pair, got none")
    return at_least_float32(mismatched.detach()).mean().clamp(min=0)


@dataclass(frozen=True, kw_only=True)
class KTOLoss(Loss):
    """w_D σ(β(z0 - h)) for desirable completions, w_U σ(β(h - z0)) for the others: 2402.01306 eq. 8.

    scores, reference [B, 1]: one completion per row, desirable where its relevance is > 0. h = (score - reference)/τ.
    point: z0, a scalar in units of h, not of βh; 0 where None. The mean is over completions, not over weights.
    logps: `sigmoid`, h = log σ(score/τ) - log σ(reference/τ), for rerankers; with `none` and `candidates`
    (undefined for a single completion) scores are log-probabilities.
    """

    beta: float = 0.1
    temperature: float = 1.0  # Embedding models use that of stage one; z0 absorbs the constant that h lacks then.
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    logps: str = "auto"

    def __post_init__(self) -> None:
        require_positive(
            beta=self.beta,
            temperature=self.temperature,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
        )
        require_choice(LOGPS, logps=self.logps)

    @property
    def needs(self) -> frozenset[str]:
        # Each epoch draws new mismatched pairs, so their reference scores cannot be stored.
        return frozenset({"reference", "live_reference"} if self.needs_reference_point else {"reference"})

    @property
    def reward_scale(self) -> float:
        return self.beta

    def fitted(self, logps: str) -> Self:
        return replace(self, logps=logps) if self.logps == "auto" else self

    @property
    def needs_reference_point(self) -> bool:
        """Whether the trainer must measure `point` on mismatched pairs."""
        return True

    def log_ratios(self, scores: Tensor, reference: Tensor | None) -> Tensor:
        """Returns h, in the shape of the scores; the reference is a constant."""
        policy = at_least_float32(scores) / self.temperature
        fixed = at_least_float32(require_reference(self, reference)).detach() / self.temperature
        if self.logps == "sigmoid":
            return negative_log_sigmoid(fixed) - negative_log_sigmoid(policy)
        return policy - fixed

    def balance(self, num_desirable: int, num_undesirable: int) -> float | None:
        """Returns the ratio w_D n_D : w_U n_U, or None if a class is empty."""
        if not num_desirable or not num_undesirable:
            return None
        return self.desirable_weight * num_desirable / (self.undesirable_weight * num_undesirable)

    def __call__(
        self, scores: Tensor, labels: Labels, reference: Tensor | None = None, *, point: Tensor | None = None
    ) -> LossOutput:
        if scores.ndim != 2 or scores.shape[1] != 1:
            raise ValueError(
                f"{type(self).__name__} needs scores [B, 1], a completion per row, got {list(scores.shape)}"
            )
        ratios = self.log_ratios(scores, reference)[:, 0]  # [B]
        desirable = labels.relevance[:, 0] > 0
        origin = ratios.new_zeros(()) if point is None else point.detach().to(ratios)
        # The loss pushes h above the reference point if desirable, below it otherwise.
        wanted = torch.where(desirable, ratios - origin, origin - ratios)
        weights = torch.where(desirable, self.desirable_weight, self.undesirable_weight)
        losses = weights * torch.sigmoid(-self.beta * wanted)
        rewards = self.beta * ratios.detach()
        liked = labels.on_cpu.relevance[:, 0] > 0
        metrics = {
            "rewards/chosen": rewards[_places(liked, rewards.device)],
            "rewards/rejected": rewards[_places(~liked, rewards.device)],
            "kl/reference_point": origin,
        }
        return LossOutput(losses, self.weights(labels)["loss"], metrics)


def _places(mask: Tensor, device: torch.device) -> Tensor:
    """The indices on the device of the True entries of mask [B] on the CPU."""
    return mask.nonzero().squeeze(1).to(device, non_blocking=True)


@dataclass(frozen=True, kw_only=True)
class KTOZeroLoss(KTOLoss):
    """KTO with z0 = 0, for ablation of the reference point."""

    @property
    def needs_reference_point(self) -> bool:
        return False
