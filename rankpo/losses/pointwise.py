"""Pointwise loss of each candidate against a relevance in [0, 1], as in RAG-Retrieval."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankpo.losses.base import require_choice, require_positive
from rankpo.losses.lists import ListLoss, mean_over
from rankpo.losses.maths import negative_log_sigmoid
from rankpo.types import Labels


@dataclass(frozen=True, kw_only=True)
class PointwiseLoss(ListLoss):
    """Mean over a list's candidates of y·ℓ(s) + (1 - y)·ℓ(-s) (`bce`), or of (σ(s) - y)² (`mse`, after the sigmoid).

    The weight of a list is its number of candidates, so that the value of an update depends only on its set of pairs,
    not on their grouping; lists of one candidate are usable. positive_weight: factor of the term of relevant candidates
    (bce). Raises ValueError for a relevance outside [0, 1], since the dataset scales its labels.
    """

    kind: str = "bce"
    positive_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(("bce", "mse"), kind=self.kind)
        require_positive(positive_weight=self.positive_weight)
        if self.kind == "mse" and self.positive_weight != 1:
            raise ValueError(f"positive_weight must be 1 with kind=mse, got {self.positive_weight}; or set kind=bce")

    def check(self, target: Tensor, mask: Tensor) -> None:
        outside = target[(target < 0) | (target > 1)]
        if len(outside):
            raise ValueError(
                f"loss=pointwise needs a {self.target} in [0, 1], got {float(outside[0]):g}; set "
                "datasets.<name>.min_label and max_label to the range of its labels"
            )

    def usable(self, target: Tensor, labels: Labels) -> Tensor:
        return labels.mask.any(1)

    def list_weights(self, target: Tensor, labels: Labels) -> Tensor:
        return labels.mask.sum(1).float()

    def of_lists(self, scores: Tensor, target: Tensor, labels: Labels) -> Tensor:
        if self.kind == "mse":
            return mean_over((torch.sigmoid(scores) - target).square(), labels.mask)
        relevant = self.positive_weight * target * negative_log_sigmoid(scores)
        return mean_over(relevant + (1 - target) * negative_log_sigmoid(-scores), labels.mask)
