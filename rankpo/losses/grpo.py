"""GRPO loss: group relative policy optimisation on the completions of one prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from rankpo.losses.base import (
    require_below,
    require_choice,
    require_not_negative,
    require_positive,
    require_reference,
)
from rankpo.losses.maths import LOGPS, at_least_float32, logps_from_scores
from rankpo.losses.ppo import PolicyTokens, TokenPolicyLoss, clipped_policy_loss, k3, ratio_metrics, scored_tokens
from rankpo.types import Labels, LossOutput, Term


@dataclass(frozen=True, kw_only=True)
class GRPOLoss(TokenPolicyLoss):
    """-min(Aρ, A·clip(ρ, 1 - ε, 1 + ε_high)) + β(e^{-x} + x - 1), https://arxiv.org/abs/2402.03300 eqs. 3 and 4.

    A = (r - mean)/(std + delta) within the group of one query, r = relevance; 0 in a group of one or of equal
    rewards. ρ = π/old, x = log π - log reference. std: `population` with delta .01 as HALOs, `sample` with 1e-4 as
    TRL. normalise: `token`, a mean over all tokens; `sequence`, a mean of the completions' means.
    On scores [B, G] of models that are not causal, a candidate counts as one token, and `logps` is the conversion of
    scores to log-probabilities.
    """

    epsilon: float = 0.2
    epsilon_high: float | None = None  # null means ε; DAPO uses .28.
    beta: float = 0.0
    std: str = "population"
    delta: float = 0.01
    normalise: str = "token"
    temperature: float = 1.0
    logps: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_below(1.0, epsilon=self.epsilon)
        require_not_negative(beta=self.beta, epsilon_high=self.epsilon_high or 0.0)
        require_positive(delta=self.delta, temperature=self.temperature)
        require_choice(("population", "sample"), std=self.std)
        require_choice(("token", "sequence"), normalise=self.normalise)
        require_choice(LOGPS, logps=self.logps)

    @property
    def needs(self) -> frozenset[str]:
        wanted = {
            "reference": self.old_policy == "reference" or self.beta > 0,
            "token_logps": self.old_policy == "batch",  # Ratios to the old policy are per token.
        }
        return frozenset(need for need, asked in wanted.items() if asked)

    def asked_by(self, need: str) -> str:
        return "loss.old_policy=batch" if need == "token_logps" else super().asked_by(need)

    @property
    def reward_scale(self) -> float:
        return self.beta or 1.0

    def fitted(self, logps: str) -> Self:
        return replace(self, logps=logps) if self.logps == "auto" else self

    @property
    def bounds(self) -> tuple[float, float]:
        """The clipping interval of ρ."""
        return 1 - self.epsilon, 1 + (self.epsilon if self.epsilon_high is None else self.epsilon_high)

    def weights(self, labels: Labels) -> Mapping[str, Tensor]:
        if labels.lengths is None or self.normalise == "sequence":
            units = labels.mask if labels.lengths is None else labels.mask & (labels.lengths > 0)
            count = units.sum(1).to(torch.float32)
        else:
            count = scored_tokens(self, labels).sum(1)
        return {"loss": count, "kl": count} if self.beta else {"loss": count}

    def advantages(self, rewards: Tensor, mask: Tensor) -> Tensor:
        """Advantages A [B, G] of rewards [B, G]; 0 for masked entries, groups of one, and groups of equal rewards."""
        rewards = at_least_float32(rewards)
        count = mask.sum(1, keepdim=True)
        centred = torch.where(
            mask, rewards - torch.where(mask, rewards, 0).sum(1, keepdim=True) / count.clamp(min=1), 0
        )
        freedom = count if self.std == "population" else count - 1
        deviation = (centred.square().sum(1, keepdim=True) / freedom.clamp(min=1)).sqrt()
        # The mean of equal rewards can have a rounding error that is large relative to δ.
        spread = torch.where(mask, rewards, -torch.inf).amax(1) > torch.where(mask, rewards, torch.inf).amin(1)
        return torch.where(spread[:, None], centred / (deviation + self.delta), 0)

    def of_tokens(self, tokens: PolicyTokens, advantages: Tensor, counts: Tensor) -> LossOutput:
        """Losses [P] of the tokens of n completions. advantages [n]; counts [n] tokens of each, on the CPU."""
        owner = torch.arange(len(counts)).repeat_interleave(counts).to(advantages.device, non_blocking=True)  # [P]
        each = advantages.detach()[owner]
        weights = None
        if self.normalise == "sequence":
            weights = (1 / counts.to(each.dtype)).to(advantages.device, non_blocking=True)[owner]
        return self._losses(tokens, each, weights)

    def __call__(self, scores: Tensor, labels: Labels, reference: Tensor | None = None) -> LossOutput:
        """Losses [B] of candidates' scores [B, G]: the mean over each list, weighted by its length."""
        if self.old_policy != "reference":
            raise ValueError(f"old_policy={self.old_policy} acts on tokens; on scores [B, G] set old_policy=reference")
        mask = labels.mask
        fixed = at_least_float32(require_reference(self, reference)).detach()
        slots = candidate_slots(labels)
        policy, old = (
            logps_from_scores(values, mask, self.temperature, self.logps)[slots]
            for values in (at_least_float32(scores), fixed)
        )  # [all candidates]
        flat = self._losses(PolicyTokens(policy, old, old), self.advantages(labels.relevance, mask)[slots], None)
        weights = self.weights(labels)["loss"]
        terms = {
            name: Term(_list_means(term.losses, mask, slots), weights, term.scale) for name, term in flat.terms.items()
        }
        rewards = {"rewards/mean": labels.relevance[slots], "rewards/std": group_deviations(labels)}
        return LossOutput(_list_means(flat.losses, mask, slots), weights, {**flat.metrics, **rewards}, terms)

    def _losses(self, tokens: PolicyTokens, advantages: Tensor, weights: Tensor | None) -> LossOutput:
        logps = at_least_float32(tokens.logps)
        log_ratio = logps - at_least_float32(tokens.old_logps).detach()
        # A zero advantage gives a zero loss even if ρ overflows, since 0 · inf would be NaN.
        ratio = torch.where(advantages != 0, log_ratio, log_ratio.detach().clamp(max=0)).exp()
        losses, clipped = clipped_policy_loss(ratio, advantages, *self.bounds)
        distance = k3(logps - at_least_float32(tokens.reference_logps).detach())
        terms = {"kl": Term(distance, weights, self.beta)} if self.beta else {}
        return LossOutput(losses, weights, ratio_metrics(ratio, clipped, advantages, distance), terms)


def candidate_slots(labels: Labels) -> tuple[Tensor, Tensor]:
    """Rows and columns [candidates] of the unmasked candidates, on the device of the labels, without a wait for it."""
    device = labels.mask.device
    row, column = labels.on_cpu.mask.nonzero(as_tuple=True)
    return row.to(device, non_blocking=True), column.to(device, non_blocking=True)


def group_deviations(labels: Labels) -> Tensor:
    """[B] population standard deviation of each group's rewards; 0 for groups without advantages."""
    rewards, mask, slots = at_least_float32(labels.relevance), labels.mask, candidate_slots(labels)
    mean = _list_means(rewards[slots], mask, slots)[:, None]
    return _list_means((rewards - mean).square()[slots], mask, slots).sqrt()


def _list_means(values: Tensor, mask: Tensor, slots: tuple[Tensor, Tensor]) -> Tensor:
    """[B] means of values [candidates] over the unmasked places `slots` of each row; 0 for a row without any."""
    placed = values.new_zeros(mask.shape).index_put(slots, values)
    return placed.sum(1) / mask.sum(1).clamp(min=1)
