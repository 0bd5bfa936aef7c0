"""What the losses on lists share: targets, pairs without ties, empty lists, metrics. losses.md section 2.10."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rankpo.losses.base import Loss, at_least_float32, require_choice, require_positive
from rankpo.types import Labels, LossOutput

NDCG_DEPTH = 10
LARGEST_GRADE = 30  # 2^30 - 1 is still exact in float64, and no scale of grades is longer


@dataclass(frozen=True, kw_only=True)
class ListLoss(Loss):
    """Base of the losses on lists of G candidates: scores [B, G] become s = scores/τ, labels the target y.

    target: `relevance`, the labels (scores that stand beside lists of positives and negatives are labels), or `teacher`,
    the teacher's scores; constants either way. A list from which nothing can be
    learned (`usable`) has loss 0, gradient 0 and weight 0, and is counted in `scores/empty`. Masked candidates
    enter nothing, whatever number stands there.
    """

    temperature: float = 1.0
    target: str = "relevance"

    reads_grades: ClassVar[bool] = True  # False: positives and negatives decide, whatever labels stand beside them

    def __post_init__(self) -> None:
        require_positive(temperature=self.temperature)
        require_choice(("relevance", "teacher"), target=self.target)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"teacher"} if self.target == "teacher" else ())

    def of_lists(self, scores: Tensor, target: Tensor, labels: Labels) -> Tensor:
        """Losses [B] of s and y [B, G], both 0 where masked; finite also for lists that are not usable."""
        raise TypeError(f"{type(self).__name__} has no formula")

    def check(self, target: Tensor, mask: Tensor) -> None:
        """Raises ValueError for targets that the formula does not allow."""

    def usable(self, target: Tensor, labels: Labels) -> Tensor:
        """[B] bool: lists with at least one ordered pair."""
        return ordered_pairs(target, labels.mask).flatten(1).any(1)

    def teaches(self, labels: Labels) -> Tensor:
        if self.target == "teacher" and labels.teacher is None:
            return super().teaches(labels)  # what is missing is the trainer's to say
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
        """y [B, G] in at least float32, 0 where masked. Raises ValueError where the teacher is missing."""
        relevance = labels.grades if self.reads_grades and labels.grades is not None else labels.relevance
        chosen = relevance if self.target == "relevance" else labels.teacher
        if chosen is None:
            raise ValueError(f"{type(self).__name__} learns from teacher scores, and the data has none")
        return at_least_float32(chosen.detach()).masked_fill(~labels.mask, 0.0)

    def scaled(self, scores: Tensor, reference: Tensor | None) -> Tensor:
        """s [B, G] of raw scores and, where the loss needs them, reference scores."""
        return scores / self.temperature

    def __call__(self, scores: Tensor, labels: Labels, reference: Tensor | None = None) -> LossOutput:
        """scores [B, G] raw; losses [B] in nats, not reduced."""
        scores = at_least_float32(scores)
        target = self.target_of(labels).to(scores.dtype)
        usable = self.usable(target, labels)
        s = self.scaled(scores, reference).masked_fill(~labels.mask, 0.0)
        losses = self.of_lists(s, target, labels).masked_fill(~usable, 0.0)
        metrics = list_metrics(scores.detach(), target, labels.mask, graded=self.target == "relevance")
        metrics["scores/empty"] = (~usable).to(scores.dtype)
        return LossOutput(losses, self.weights(labels)["loss"], metrics)


def ordered_pairs(target: Tensor, mask: Tensor) -> Tensor:
    """[B, G, G] bool: candidate i stands above j, y_i > y_j. Ties make no pair; masked candidates are in none."""
    return (target[:, :, None] > target[:, None, :]) & both(mask)


def both(mask: Tensor) -> Tensor:
    """[B, G, G] bool: neither of two candidates is masked."""
    return mask[:, :, None] & mask[:, None, :]


def mean_over(values: Tensor, kept: Tensor) -> Tensor:
    """Mean [B] over the kept entries of values [B, …]; 0 where none is kept."""
    total = torch.where(kept, values, 0.0).flatten(1).sum(1)
    return total / kept.flatten(1).sum(1).clamp(min=1)


def gaps(values: Tensor) -> Tensor:
    """values_i - values_j [B, G, G]."""
    return values[:, :, None] - values[:, None, :]


def ranks(target: Tensor, mask: Tensor) -> Tensor:
    """r [B, G]: rank by target from 1, equal ones share the mean of their ranks; 0 where masked."""
    pairs = both(mask)
    above = ((target[:, None, :] > target[:, :, None]) & pairs).sum(2)
    equal = ((target[:, None, :] == target[:, :, None]) & pairs).sum(2)  # oneself among them
    return torch.where(mask, 1 + above + (equal - 1) / 2, 0.0).to(target.dtype)


def positions(scores: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """[B, G]: position by score from 1, masked ones last. Of equal scores the less relevant one comes first:
    the order of the columns, often the best first, must never break a tie."""
    by_target = torch.where(mask, target, torch.inf).argsort(dim=1, stable=True)
    ordered = torch.where(mask, scores, -torch.inf).gather(1, by_target)
    order = by_target.gather(1, ordered.argsort(dim=1, descending=True, stable=True))
    numbers = torch.arange(1, scores.shape[1] + 1, device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter(1, order, numbers)


def list_metrics(scores: Tensor, target: Tensor, mask: Tensor, graded: bool) -> dict[str, Tensor]:
    """`scores/accuracies`, `scores/ties` (shares of the ordered pairs), `scores/top1` (a best one stands first,
    alone) and, if graded, `ndcg@10`; one value for each list with an ordered pair.

    target: the relevance that the loss is trained on. Its scale is that of the training data: with a label range, in
    [0, 1], so that these gains are flatter than those of an evaluation, which takes the labels before scaling.
    """
    pairs = ordered_pairs(target, mask)
    told = pairs.flatten(1).any(1)
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
    return {name: values[told] for name, values in metrics.items()}


def ndcg(place: Tensor, target: Tensor, mask: Tensor, k: int) -> Tensor:
    """nDCG@k [B] with gains 2^y - 1 of candidates at `place` [B, G]; 0 where no gain is positive."""
    found = discounted(gain(target, mask), place, k)
    ideal = ideal_dcg(target, mask, k)
    return torch.where(ideal > 0, found.sum(1) / ideal.clamp(min=torch.finfo(ideal.dtype).tiny), 0.0)


def gain(target: Tensor, mask: Tensor) -> Tensor:
    """2^y - 1 [B, G], 0 where masked and for grades below 0."""
    return torch.where(mask, torch.exp2(target.clamp(0, LARGEST_GRADE)) - 1, 0.0)


def ideal_dcg(target: Tensor, mask: Tensor, k: int) -> Tensor:
    """The largest DCG@k [B] that any order of the candidates has."""
    gains = gain(target, mask).sort(1, descending=True).values
    return discounted(gains, torch.arange(1, target.shape[1] + 1, device=target.device).expand_as(gains), k).sum(1)


def discounted(gains: Tensor, place: Tensor, k: int) -> Tensor:
    """gain/log2(1 + position) [B, G], 0 beyond position k."""
    return torch.where(place <= k, gains / torch.log2(1 + place.to(gains.dtype)), 0.0)
