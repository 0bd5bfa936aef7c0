"""PPO loss on stored completions: advantages, clipped ratios, critic.

Tensors [P] are per scored token, with the completions' tokens concatenated; counts [n] is the number of tokens of each
completion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rankpo.losses.base import (
    Loss,
    require_below,
    require_choice,
    require_not_negative,
    require_positive,
)
from rankpo.losses.maths import at_least_float32
from rankpo.losses.risk import reverse_kl
from rankpo.types import Labels, LossOutput, Term

OLD_POLICIES = ("reference", "batch")
WHITENING_FLOOR = 1e-8  # Added to the variance, as in HALOs.


class PolicyTokens(NamedTuple):
    """Log-probabilities of the labels, [P] each: of the policy, with gradient; of the old policy; of the reference."""

    logps: Tensor
    old_logps: Tensor
    reference_logps: Tensor


class Estimates(NamedTuple):
    """Constants of the tokens, computed before the first pass, [P] each: whitened advantages, returns R."""

    advantages: Tensor
    returns: Tensor


def terminal_rewards(rewards: Tensor, counts: Tensor) -> Tensor:
    """[P]: each completion's reward [n] on its last token, 0 elsewhere. Skips completions without tokens.

    counts: [n], on the CPU.
    """
    per_token = rewards.new_zeros(int(counts.sum()))
    scored = counts > 0
    lasts, chosen = torch.cumsum(counts, 0)[scored] - 1, scored.nonzero().squeeze(1)
    per_token[lasts.to(rewards.device, non_blocking=True)] = rewards[chosen.to(rewards.device, non_blocking=True)]
    return per_token


def generalised_advantages(rewards: Tensor, values: Tensor, counts: Tensor, gamma: float, lam: float) -> Tensor:
    """A_t = δ_t + γλ A_{t+1}, δ_t = r_t + γ V_{t+1} - V_t, V after the last token 0. 1506.02438 eq. 16.

    rewards, values [P]; counts [n].
    """
    following = torch.cat([part.roll(-1).index_fill(0, _last(part), 0) for part in values.split(counts.tolist())])
    return discounted_sums(rewards + gamma * following - values, counts, gamma * lam)


def discounted_sums(rewards: Tensor, counts: Tensor, factor: float) -> Tensor:
    """R_t = r_t + factor · R_{t+1} within each completion, [P]."""
    padded = torch.nn.utils.rnn.pad_sequence(rewards.split(counts.tolist()), batch_first=True)  # [n, T]
    sums = torch.zeros_like(padded)
    running = padded.new_zeros(len(padded))
    for place in reversed(range(padded.shape[1])):  # Padding is 0 at the end, so it adds 0.
        running = padded[:, place] + factor * running
        sums[:, place] = running
    return torch.cat([row[:count] for row, count in zip(sums, counts.tolist(), strict=True)])


def whitened(advantages: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """(A - mean)/√(variance + 1e-8), with mean and population variance over all tokens of the update."""
    return (advantages - mean) * torch.rsqrt(variance + WHITENING_FLOOR)


def clipped_policy_loss(ratio: Tensor, advantages: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """max(-Aρ, -A·clip(ρ, low, high)), https://arxiv.org/abs/1707.06347 eq. 7, and whether it clips, [P] each."""
    free, clipped = -advantages * ratio, -advantages * ratio.clamp(low, high)
    return torch.maximum(free, clipped), clipped > free


def k3(log_ratio: Tensor) -> Tensor:
    """e^{-x} + x - 1 of x = log π - log ref: at least 0; an estimate of KL(π ‖ ref) for tokens sampled from π."""
    return torch.expm1(-log_ratio) + log_ratio


@dataclass(frozen=True, kw_only=True)
class TokenPolicyLoss(Loss):
    """Base of PPO and GRPO: passes over one update, and the denominator of the ratio ρ.

    old_policy: `reference`, for offline data sampled from it; `batch`, the policy at the start of the update.
    """

    epochs: int = 1
    old_policy: str = "reference"

    def __post_init__(self) -> None:
        require_positive(epochs=self.epochs)
        require_choice(OLD_POLICIES, old_policy=self.old_policy)

    def needs_with(self, gives: frozenset[str]) -> frozenset[str]:
        # The ratios are per token, and stored scores are per completion.
        compares_tokens = "token_logps" in gives and "reference" in self.needs
        return self.needs | {"live_reference"} if compares_tokens else self.needs

    @property
    def num_passes(self) -> int:
        """The number of optimizer steps on each update."""
        return self.epochs

    @property
    def measures(self) -> Mapping[str, Callable[[Tensor, Tensor], Tensor]]:
        """Divergences that the loss needs at every scored position, by name."""
        return {}


@dataclass(frozen=True, kw_only=True)
class PPOLoss(TokenPolicyLoss):
    """max(-Aρ, -A·clip(ρ)) + critic_coef · ½(V - R)² + kl_coef · kl, each a mean over the update's tokens.

    ρ = π/old. clip: `symmetric` [1 - c, 1 + c], `reciprocal` [c, 1/c], c = clip_range. kl: `k3`, `full` (KL(π ‖ ref)
    over the vocabulary) or `none`. rewards: `label`, ±1 by whether relevance > 0; `score`, the relevance itself;
    on the last token. value_max_grad_norm: separate clipping norm of the value head's gradient, None for no clipping.
    """

    gamma: float = 0.99
    lam: float = 0.95
    clip_range: float = 0.5
    clip: str = "symmetric"
    critic_coef: float = 0.01
    kl: str = "k3"
    kl_coef: float = 0.1
    rewards: str = "label"
    value_max_grad_norm: float | None = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(gamma=self.gamma, clip_range=self.clip_range, critic_coef=self.critic_coef)
        require_not_negative(lam=self.lam, kl_coef=self.kl_coef)
        require_choice(("symmetric", "reciprocal"), clip=self.clip)
        require_choice(("k3", "full", "none"), kl=self.kl)
        require_choice(("label", "score"), rewards=self.rewards)
        if self.gamma > 1 or self.lam > 1:
            raise ValueError(f"gamma and lam must be at most 1, got {self.gamma} and {self.lam}")
        require_below(1.0, clip_range=self.clip_range)
        if self.value_max_grad_norm is not None:
            require_positive(value_max_grad_norm=self.value_max_grad_norm)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"reference", "token_logps", "value_head"})

    @property
    def measures(self) -> Mapping[str, Callable[[Tensor, Tensor], Tensor]]:
        return {"full": reverse_kl} if self.kl == "full" and self.kl_coef else {}

    def weights(self, labels: Labels) -> Mapping[str, Tensor]:
        tokens = scored_tokens(self, labels).sum(1)  # [B]
        named = {"loss": tokens, "critic": tokens}
        return {**named, "kl": tokens} if self._has_kl else named

    @property
    def _has_kl(self) -> bool:
        return self.kl != "none" and self.kl_coef > 0

    @property
    def bounds(self) -> tuple[float, float]:
        """The clipping interval of ρ."""
        c = self.clip_range
        return (1 - c, 1 + c) if self.clip == "symmetric" else (c, 1 / c)

    def rewards_of(self, relevance: Tensor) -> Tensor:
        """A completion's reward from its relevance, of the same shape."""
        return relevance if self.rewards == "score" else torch.where(relevance > 0, 1.0, -1.0).to(relevance.dtype)

    def of_tokens(
        self, tokens: PolicyTokens, estimates: Estimates, values: Tensor, divergence: Tensor | None = None
    ) -> LossOutput:
        """Losses [P] of the tokens. values: V [P] of the critic now, with gradient. divergence: `full` [P] or None."""
        log_ratio = at_least_float32(tokens.logps) - at_least_float32(tokens.old_logps).detach()
        ratio = log_ratio.exp()
        losses, clipped = clipped_policy_loss(ratio, estimates.advantages.detach(), *self.bounds)
        error = at_least_float32(values) - estimates.returns.detach()
        terms = {"critic": Term(error.square() / 2, scale=self.critic_coef)}
        distance = k3(at_least_float32(tokens.logps) - at_least_float32(tokens.reference_logps).detach())
        if self._has_kl:
            if self.kl == "full" and divergence is None:
                raise ValueError("kl=full needs the divergence of every token, got None")
            terms["kl"] = Term(distance if divergence is None else divergence, scale=self.kl_coef)
        return LossOutput(losses, None, ratio_metrics(ratio, clipped, estimates.advantages, distance), terms)


def scored_tokens(loss: Loss, labels: Labels) -> Tensor:
    """Token counts [B, G] of the completions, 0 where masked. Raises ValueError for scores without tokens."""
    if labels.lengths is None:
        raise ValueError(f"{type(loss).__name__} acts on the tokens of completions, but the labels have no lengths")
    return torch.where(labels.mask, labels.lengths, 0).to(torch.float32)


def ratio_metrics(ratio: Tensor, clipped: Tensor, advantages: Tensor, distance: Tensor) -> dict[str, Tensor]:
    """Metrics per token: ρ, whether it clips, the advantage, and the k3 distance from the reference."""
    return {
        "scores/ratio": ratio.detach(),
        "scores/clip_fraction": clipped.to(ratio.dtype),
        "scores/advantages": advantages.detach(),
        "kl/k3": distance.detach(),
    }


def _last(part: Tensor) -> Tensor:
    """The index of the last element; empty for an empty tensor."""
    return torch.arange(max(0, len(part) - 1), len(part), device=part.device)
