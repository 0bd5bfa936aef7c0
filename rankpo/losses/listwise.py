"""Listwise losses on the distribution or the order of a whole list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rankpo.losses.base import require_choice, require_positive, require_reference
from rankpo.losses.lists import ListLoss, gaps, mean_over, ranks
from rankpo.losses.maths import masked_log_softmax
from rankpo.types import Labels


@dataclass(frozen=True, kw_only=True)
class ListNetLoss(ListLoss):
    """-Σ_i p_i log softmax(s)_i with p = softmax(y/T). Cao et al., ICML 2007.

    target_temperature: T; at 1 a single positive among ten candidates gets a target of .23 only. targets: `all`, or
    `nonzero`, p over candidates with y ≠ 0 only (RAG-Retrieval's listwise_ce); a list without any is unusable.
    """

    target_temperature: float = 1.0
    targets: str = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(target_temperature=self.target_temperature)
        require_choice(("all", "nonzero"), targets=self.targets)

    def of_lists(self, scores: Tensor, target: Tensor, labels: Labels) -> Tensor:
        counted = labels.mask if self.targets == "all" else labels.mask & (target != 0)
        wanted = masked_log_softmax(target / self.target_temperature, counted).exp().masked_fill(~counted, 0.0)
        return -(wanted * masked_log_softmax(scores, labels.mask)).sum(1)


@dataclass(frozen=True, kw_only=True)
class SoftmaxLoss(ListLoss):
    """-Σ_i t_i log softmax(s)_i with t = y/Σy: with one positive, cross-entropy against its group (FlagEmbedding).

    For records with lists of positives and negatives, y is 1 and 0 regardless of their scores. Raises ValueError for
    y < 0.
    """

    reads_grades: ClassVar[bool] = False

    def check(self, target: Tensor, mask: Tensor) -> None:
        if bool((target < 0).any()):
            raise ValueError(
                f"loss=softmax needs a {self.target} >= 0, got {float(target.min()):g}; set "
                "datasets.<name>.min_label and max_label to the range of its labels"
            )

    def of_lists(self, scores: Tensor, target: Tensor, labels: Labels) -> Tensor:
        total = target.sum(1, keepdim=True)
        wanted = target / torch.where(total > 0, total, 1.0)
        return -(wanted * masked_log_softmax(scores, labels.mask)).sum(1)


@dataclass(frozen=True, kw_only=True)
class ListMLELoss(ListLoss):
    """Σ_k [logsumexp_{j ≥ k} s_(j) - s_(k)], candidates by y descending. Xia et al., ICML 2008.

    This is the negative log-likelihood of the whole order under the Plackett-Luce model. Candidates of equal y keep the
    column order, which the loader shuffles every epoch. reduction: `sum`, or `mean` over the list's candidates.
    """

    reduction: str = "sum"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(("sum", "mean"), reduction=self.reduction)

    def of_lists(self, scores: Tensor, target: Tensor, labels: Labels) -> Tensor:
        terms, counted = choice_terms(scores, target, labels.mask)
        if self.reduction == "mean":
            return mean_over(terms, counted)
        return terms.sum(1)


@dataclass(frozen=True, kw_only=True)
class PListMLELoss(ListLoss):
    """Position-aware ListMLE: Σ_k w_k [logsumexp_{j ≥ k} s_(j) - s_(k)], w_k = (2^{n-k} - 1)/Σ. Lan et al., UAI 2014."""

    def of_lists(self, scores: Tensor, target: Tensor, labels: Labels) -> Tensor:
        terms, counted = choice_terms(scores, target, labels.mask)
        n = counted.sum(1, keepdim=True).to(terms.dtype)
        k = torch.arange(1, terms.shape[1] + 1, device=terms.device, dtype=terms.dtype)
        # Numerator and denominator are divided by 2^n, which keeps long lists finite.
        weights = torch.where(counted, torch.exp2(-k) - torch.exp2(-n), 0.0)
        total = weights.sum(1, keepdim=True)
        return (weights / torch.where(total > 0, total, 1.0) * terms).sum(1)


@dataclass(frozen=True, kw_only=True)
class PlackettLuceLoss(ListLoss):
    """The first K terms of ListMLE: the likelihood of the best K in order. With a reference, DPO on rankings.

    first: K, None for the whole order; 1 is `softmax` on the best candidate. reference_free false: s = β(score -
    reference score)/τ (https://arxiv.org/abs/2305.18290, appendix A.3).
    """

    first: int | None = None
    reference_free: bool = True
    beta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(beta=self.beta)
        if self.first is not None and self.first < 1:
            raise ValueError(f"first must be >= 1 or null, got {self.first}")

    @property
    def needs(self) -> frozenset[str]:
        return super().needs if self.reference_free else super().needs | {"reference"}

    @property
    def reward_scale(self) -> float:
        return self.beta

    def scaled(self, scores: Tensor, reference: Tensor | None) -> Tensor:
        if self.reference_free:
            return self.beta * scores / self.temperature
        return self.beta * (scores - require_reference(self, reference).detach()) / self.temperature

    def of_lists(self, scores: Tensor, target: Tensor, labels: Labels) -> Tensor:
        terms, _ = choice_terms(scores, target, labels.mask)
        return terms[:, : self.first].sum(1)


@dataclass(frozen=True, kw_only=True)
class ADRMSELoss(ListLoss):
    """Mean of (r_i - r̂_i)²/log2(1 + r_i), r̂_i = 1 + Σ_{j ≠ i} σ(a(s_j - s_i)). https://arxiv.org/abs/2405.07920.

    r: rank by y from 1, with mean ranks for ties. alpha: a, the steepness of the soft rank.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(alpha=self.alpha)

    def of_lists(self, scores: Tensor, target: Tensor, labels: Labels) -> Tensor:
        mask = labels.mask
        wanted = ranks(target, mask)
        diagonal = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
        beaten_by = torch.where(mask[:, None, :] & ~diagonal, torch.sigmoid(-self.alpha * gaps(scores)), 0.0)
        soft = 1 + beaten_by.sum(2)  # r̂ [B, G]
        return mean_over((wanted - soft).square() / torch.log2(1 + wanted.clamp(min=1)), mask)


def choice_terms(scores: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Returns logsumexp_{j ≥ k} s_(j) - s_(k) [B, G] in the order of the target (0 for padding), and the valid mask."""
    order = torch.where(mask, target, -torch.inf).argsort(dim=1, descending=True, stable=True)
    scores = scores - scores.detach().amax(1, keepdim=True)  # The shift avoids rounding of large scores.
    ordered, counted = scores.gather(1, order), mask.gather(1, order)
    numbers = torch.arange(mask.shape[1], device=mask.device)
    left = (numbers[None, :] >= numbers[:, None]) & counted[:, None, :]  # [B, k, j]: j remains at step k
    left = left | torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)  # The diagonal keeps every row finite.
    remaining = ordered[:, None, :].expand(left.shape).masked_fill(~left, -torch.inf).logsumexp(2)
    return torch.where(counted, remaining - ordered, 0.0), counted
