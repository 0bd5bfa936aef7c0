"""Divergences of a policy from its reference over the vocabulary at one position: KL and risk measures.

p = reference, π = policy, g = log p - log π. All functions take (reference_logps [..., V], policy_logps [..., V]),
treat the reference as a constant, and return [...] in nats, differentiable in the policy. Weights and quantiles are
constants, by Danskin's theorem on the derivative of an optimal value.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankpo.losses.base import require_choice, require_positive

DIVERGENCES = ("cvar", "kl", "erm", "cvar_lower", "published_code")
HALVINGS = 26  # Bisections of the range of g; the remaining mass is below float32 precision.


def kl(reference_logps: Tensor, policy_logps: Tensor) -> Tensor:
    """KL(p ‖ π) = Σ p g, the forward direction: https://arxiv.org/abs/2404.11999 eq. 11."""
    probabilities, gains = _gains(reference_logps, policy_logps)
    return (probabilities * gains).sum(-1)


def reverse_kl(reference_logps: Tensor, policy_logps: Tensor) -> Tensor:
    """KL(π ‖ p) = -Σ π g."""
    probabilities = policy_logps.exp()
    gains = reference_logps.detach() - policy_logps
    return -(probabilities * torch.where(probabilities > 0, gains, 0)).sum(-1)


def cvar(reference_logps: Tensor, policy_logps: Tensor, level: float) -> Tensor:
    """Mean of g over the upper tail of mass μ = level: (1/μ) Σ w g. At μ = 1 it equals KL; it grows as μ falls."""
    probabilities, gains = _gains(reference_logps, policy_logps)
    weights = tail_weights(gains.detach(), probabilities, level)
    return (weights * gains).sum(-1) / level


def cvar_lower(reference_logps: Tensor, policy_logps: Tensor, level: float) -> Tensor:
    """Mean of g over the lower tail of mass μ: the formula as printed in 2505.20359; at most KL."""
    probabilities, gains = _gains(reference_logps, policy_logps)
    weights = tail_weights(-gains.detach(), probabilities, level)
    return (weights * gains).sum(-1) / level


def erm(reference_logps: Tensor, policy_logps: Tensor, mu: float) -> Tensor:
    """(1/μ) log Σ p e^{μg}: the Rényi divergence of order 1 + μ, KL as μ goes to 0."""
    fixed = reference_logps.detach()
    _, gains = _gains(fixed, policy_logps)
    return (fixed + mu * gains).logsumexp(-1) / mu


def published_cvar(reference_logps: Tensor, policy_logps: Tensor, level: float, split: bool = True) -> Tensor:
    """Σ p g 1[g > q], q the (1 - level)-quantile of g with equal weight per word: the Ra-DPO repository's code.

    split: treats each half of the vocabulary separately, as that code does. This function reproduces its numbers. It
    drops the probability of words below the quantile, depends on the order of token ids, and does not divide by the
    remaining mass.
    """
    probabilities, gains = _gains(reference_logps, policy_logps)
    if not split:
        return _above_quantile(probabilities, gains, level)
    middle = gains.shape[-1] // 2
    halves = ((probabilities[..., part], gains[..., part]) for part in (slice(0, middle), slice(middle, None)))
    return torch.stack([_above_quantile(p, g, level) for p, g in halves]).sum(0)


def tail_weights(values: Tensor, probabilities: Tensor, mass: float) -> Tensor:
    """w [..., V] in [0, p] with Σw = mass on the largest values; the word at the border gets a fraction.

    Bisection finds the border without sorting: each step is one reduction over the vocabulary, independent of the
    order of the words. Words that tie at the border share the remaining mass in proportion to their probability.
    """
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    above = torch.empty_like(values)  # All steps share the buffer, because allocating 128,000 words is slow.
    for _ in range(HALVINGS if values.dtype == torch.float32 else 2 * HALVINGS):
        middle = (low + high) / 2
        torch.gt(values, middle, out=above)
        fits = above.mul_(probabilities).sum(-1, keepdim=True) <= mass
        low = torch.where(fits, low, middle)
        high = torch.where(fits, middle, high)
    whole = values > high
    border = (values >= low) & ~whole  # Values equal to `low` are at the border up to rounding.
    left = mass - torch.where(whole, probabilities, 0).sum(-1, keepdim=True)
    at_border = torch.where(border, probabilities, 0).sum(-1, keepdim=True)
    share = (left / at_border.clamp(min=torch.finfo(values.dtype).tiny)).clamp(0, 1)
    return torch.where(whole, probabilities, torch.where(border, share * probabilities, 0))


def _gains(reference_logps: Tensor, policy_logps: Tensor) -> tuple[Tensor, Tensor]:
    """Returns p, a constant, and g; words of reference probability 0 have g = 0."""
    fixed = reference_logps.detach()
    probabilities = fixed.exp()
    return probabilities, torch.where(probabilities > 0, fixed - policy_logps, 0)


def _above_quantile(probabilities: Tensor, gains: Tensor, level: float) -> Tensor:
    """Finds the quantile between neighbouring order statistics by two partial selections instead of a sort."""
    constant = gains.detach()
    place = (1 - level) * (constant.shape[-1] - 1)
    below = min(int(place), constant.shape[-1] - 2)
    first = constant.kthvalue(below + 1, -1, keepdim=True).values
    second = constant.kthvalue(below + 2, -1, keepdim=True).values
    quantile = torch.lerp(first, second, place - below)
    return torch.where(constant > quantile, probabilities * gains, 0).sum(-1)


@dataclass(frozen=True, kw_only=True)
class RiskMeasure:
    """One of `DIVERGENCES` with its parameters, a function of log-probabilities [..., V] of reference and policy.

    confidence_level: μ of cvar and cvar_lower, c of published_code, in (0, 1]. erm_mu: μ of erm.
    """

    divergence: str = "cvar"
    confidence_level: float = 0.95
    erm_mu: float = 1.0
    published_split: bool = True

    def __post_init__(self) -> None:
        require_choice(DIVERGENCES, divergence=self.divergence)
        require_positive(confidence_level=self.confidence_level, erm_mu=self.erm_mu)
        if self.confidence_level > 1:
            raise ValueError(f"confidence_level must be in (0, 1], got {self.confidence_level}")

    def __call__(self, reference_logps: Tensor, policy_logps: Tensor) -> Tensor:
        if self.divergence == "kl":
            return kl(reference_logps, policy_logps)
        if self.divergence == "erm":
            return erm(reference_logps, policy_logps, self.erm_mu)
        if self.divergence == "published_code":
            return published_cvar(reference_logps, policy_logps, self.confidence_level, self.published_split)
        tail = cvar if self.divergence == "cvar" else cvar_lower
        return tail(reference_logps, policy_logps, self.confidence_level)
