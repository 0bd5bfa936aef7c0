"""ListLoss and helpers of losses on lists: targets, ordered pairs, empty lists and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rankpo.losses.base import Loss, require_choice, require_positive
from rankpo.losses.maths import at_least_float32
from rankpo.types import Labels, LossOutput

NDCG_DEPTH = 10
LARGEST_GRADE = 30  # 2^30 - 1 is exact in float64, and grade scales are shorter.


@dataclass(frozen=True, kw_only=True)
class ListLoss(Loss):
    """Base of the losses on lists of G candidates: scores [B, G] become s = scores/τ, labels the target y.

    target: `relevance`, the labels (including scores beside lists of positives and negatives), or `teacher`, the
    teacher's scores; both are constants. A list without a training signal (see `usable`) has loss 0, gradient 0 and
    weight 0, and counts in `scores/empty`. The values of masked candidates have no effect.
    """

    temperature: float = 1.0
    target: str = "relevance"

    reads_grades: ClassVar[bool] = True  # False: the loss uses binary relevance.

    def __post_init__(self) -> None:
        require_positive(temperature=self.temperature)
        require_choice(("relevance", "teacher"), target=self.target)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"teacher"} if self.target == "teacher" else ())

    def of_lists(self, scores: Tensor, target: Tensor, labels: Labels) -> Tensor:
        """Losses [B] of s and y [B, G], both 0 where masked; the result must be finite for unusable lists too."""
        raise TypeError(f"{type(self).__name__} has no formula")

    def check(self, target: Tensor, mask: Tensor) -> None:
        """Raises ValueError for targets outside the domain of the loss."""

    def usable(self, target: Tensor, labels: Labels) -> Tensor:
        """[B] bool: lists with at least one ordered pair."""
        return ordered_pairs(target, labels.mask).flatten(1).any(1)

    def teaches(self, labels: Labels) -> Tensor:
        if self.target == "teacher" and labels.teacher is None:
            return super().teaches(labels)  # The trainer reports a missing teacher.
        return self.usable(self.target_of(labels), labels)

    def list_weights(self, target: Tensor, labels: Labels) -> Tensor:
        """Weights [B] of usable lists: 1 each, so that long lists do not outweigh short ones."""
        return torch.ones(len(labels), device=target.device)

    def weights(self, labels: Labels) -> Mapping[str, Tensor]:
        target = self.target_of(labels)
        self.check(target, labels.mask)
        weights = self.list_weights(target, labels)
        return {"loss": torch.where(self.usable(target, labels), weights, 0.0)}

    def target_of(self, labels: Labels) -> Tensor:
        """Returns y [B, G] in at least float32, 0 where masked. Raises ValueError if the teacher is missing."""
        relevance = labels.grades if self.reads_grades and labels.grades is not None else labels.relevance
        chosen = relevance if self.target == "relevance" else labels.teacher
        if chosen is None:
            raise ValueError(f"{type(self).__name__} needs teacher scores, but the data has none")
        return at_least_float32(chosen.detach()).masked_fill(~labels.mask, 0.0)

    def scaled(self, scores: Tensor, reference: Tensor | None) -> Tensor:
        """Returns s [B, G] from raw scores and, if the loss needs them, reference scores."""
        return scores / self.temperature

    def __call__(self, scores: Tensor, labels: Labels, reference: Tensor | None = None) -> LossOutput:
        """Computes unreduced losses [B] in nats from raw scores [B, G]."""
        scores = at_least_float32(scores)
        target = self.target_of(labels).to(scores.dtype)
        usable = self.usable(target, labels)
        known = labels.on_cpu
        s = self.scaled(scores, reference).masked_fill(~labels.mask, 0.0)
        losses = self.of_lists(s, target, labels).masked_fill(~usable, 0.0)
        told = ordered_lists(self.target_of(known), known.mask)
        metrics = list_metrics(scores.detach(), target, labels.mask, told, graded=self.target == "relevance")
        metrics["scores/empty"] = (~usable).to(scores.dtype)
        weights = self.weights(known)["loss"].to(scores.device, non_blocking=True)
        return LossOutput(losses, weights, metrics)


def ordered_pairs(target: Tensor, mask: Tensor) -> Tensor:
    """[B, G, G] bool: y_i > y_j. Ties and masked candidates form no pairs."""
    return (target[:, :, None] > target[:, None, :]) & both(mask)


def ordered_lists(target: Tensor, mask: Tensor) -> Tensor:
    """[n] indices of the lists with an ordered pair. On the CPU, their number can be read without a wait for a GPU."""
    return ordered_pairs(target, mask).flatten(1).any(1).nonzero().squeeze(1)


def both(mask: Tensor) -> Tensor:
    """[B, G, G] bool: both candidates are unmasked."""
    return mask[:, :, None] & mask[:, None, :]


def mean_over(values: Tensor, kept: Tensor) -> Tensor:
    """Mean [B] over the kept entries of values [B, …]; 0 for rows without kept entries."""
    total = torch.where(kept, values, 0.0).flatten(1).sum(1)
    return total / kept.flatten(1).sum(1).clamp(min=1)


def gaps(values: Tensor) -> Tensor:
    """values_i - values_j [B, G, G]."""
    return values[:, :, None] - values[:, None, :]


def ranks(target: Tensor, mask: Tensor) -> Tensor:
    """r [B, G]: rank by target from 1, with mean ranks for ties; 0 where masked."""
    pairs = both(mask)
    above = ((target[:, None, :] > target[:, :, None]) & pairs).sum(2)
    equal = ((target[:, None, :] == target[:, :, None]) & pairs).sum(2)  # The count includes i itself.
    return torch.where(mask, 1 + above + (equal - 1) / 2, 0.0).to(target.dtype)


def positions(scores: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """[B, G]: position by score from 1, masked candidates last. Ties in score place the less relevant candidate
    first, because the column order, often best first, would inflate the metrics."""
    by_target = torch.where(mask, target, torch.inf).argsort(dim=1, stable=True)
    ordered = torch.where(mask, scores, -torch.inf).gather(1, by_target)
    order = by_target.gather(1, ordered.argsort(dim=1, descending=True, stable=True))
    numbers = torch.arange(1, scores.shape[1] + 1, device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter(1, order, numbers)


def list_metrics(scores: Tensor, target: Tensor, mask: Tensor, told: Tensor, graded: bool) -> dict[str, Tensor]:
    """Returns `scores/accuracies`, `scores/ties` (shares of the ordered pairs), `scores/top1` (a best candidate ranks
    first without ties) and, if graded, `ndcg@10`; one value for each list with an ordered pair.

    told: the result of `ordered_lists`. target: the relevance in the scale of the training data. With a label range the scale is [0, 1], so the gains here
    are flatter than those of an evaluation, which uses the labels before scaling.
    """
    pairs = ordered_pairs(target, mask)
    difference = gaps(scores)
    place = positions(scores, target, mask)
    best = target == torch.where(mask, target, -torch.inf).amax(1, keepdim=True)
    metrics = {
        "scores/accuracies": mean_over((difference > 0).to(scores), pairs),
        "scores/ties": mean_over((difference == 0).to(scores), pairs),
        "scores/top1": (best & mask & (place == 1)).any(1).to(scores),
    }
    if graded:
        metrics[f"ndcg@{NDCG_DEPTH}"] = ndcg(place, target, mask, NDCG_DEPTH)
    chosen = told.to(scores.device, non_blocking=True)
    return {name: values[chosen] for name, values in metrics.items()}


def ndcg(place: Tensor, target: Tensor, mask: Tensor, k: int) -> Tensor:
    """nDCG@k [B] with gains 2^y - 1 of candidates at `place` [B, G]; 0 where no gain is positive."""
    found = discounted(gain(target, mask), place, k)
    ideal = ideal_dcg(target, mask, k)
    return torch.where(ideal > 0, found.sum(1) / ideal.clamp(min=torch.finfo(ideal.dtype).tiny), 0.0)


def gain(target: Tensor, mask: Tensor) -> Tensor:
    """2^y - 1 [B, G], 0 where masked and for grades below 0."""
    return torch.where(mask, torch.exp2(target.clamp(0, LARGEST_GRADE)) - 1, 0.0)


def ideal_dcg(target: Tensor, mask: Tensor, k: int) -> Tensor:
    """The maximum DCG@k [B] over all orders of the candidates."""
    gains = gain(target, mask).sort(1, descending=True).values
    return discounted(gains, torch.arange(1, target.shape[1] + 1, device=target.device).expand_as(gains), k).sum(1)


def discounted(gains: Tensor, place: Tensor, k: int) -> Tensor:
    """gain/log2(1 + position) [B, G], 0 beyond position k."""
    return torch.where(place <= k, gains / torch.log2(1 + place.to(gains.dtype)), 0.0)
