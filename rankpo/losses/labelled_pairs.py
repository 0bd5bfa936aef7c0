"""Losses on pairs of texts with binary similarity labels: the contrastive loss and its online form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankpo.losses.base import require_choice, require_positive
from rankpo.losses.pairs_of_update import DISTANCES, Pairs, PairwiseInBatchLoss, distances
from rankpo.losses.vectors import taken


@dataclass(frozen=True, kw_only=True)
class ContrastivePairsLoss(PairwiseInBatchLoss):
    """Mean over pairs of ½[y·d² + (1 - y)·max(0, margin - d)²], d a distance of the two texts.

    Hadsell, Chopra, LeCun, CVPR 2006, eq. 4. distance: `cosine` (1 - cosine), `euclidean` or `manhattan`. y in [0, 1]:
    1 means similar and 0 dissimilar; a number between 0 and 1 weights both terms. Raises ValueError for other labels.
    """

    margin: float = 0.5
    distance: str = "cosine"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(margin=self.margin)
        require_choice(DISTANCES, distance=self.distance)

    def check(self, labels: Tensor) -> None:
        outside = labels[(labels < 0) | (labels > 1)]
        if len(outside):
            raise ValueError(
                f"loss=contrastive_pairs needs labels in [0, 1], got {float(outside[0]):g}; set "
                "datasets.<name>.min_label and max_label to the range of its labels"
            )

    def of_update(self, embeddings: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        apart = distances(taken(embeddings, pairs.left), taken(embeddings, pairs.right), self.distance)
        alike = pairs.labels.to(apart.device, apart.dtype, non_blocking=True)
        return (alike * apart.square() + (1 - alike) * (self.margin - apart).clamp(min=0).square()) / 2, apart


@dataclass(frozen=True, kw_only=True)
class OnlineContrastiveLoss(PairwiseInBatchLoss):
    """Σ d² over the hard positive pairs of an update + Σ max(0, margin - d)² over its hard negative ones.

    Positive pairs are hard if their distance exceeds that of the nearest negative pair, and negative pairs are hard if
    their distance is below that of the farthest positive pair. In an update of one class, pairs on the wrong side of
    the mean distance are hard, as in sentence-transformers. reduction: `sum` as in sentence-transformers, which grows
    with the update, or `mean` over all its pairs.
    Raises ValueError for labels other than 0 and 1.
    """

    margin: float = 0.5
    distance: str = "cosine"
    reduction: str = "sum"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(margin=self.margin)
        require_choice(DISTANCES, distance=self.distance)
        require_choice(("sum", "mean"), reduction=self.reduction)

    def check(self, labels: Tensor) -> None:
        outside = labels[(labels != 0) & (labels != 1)]
        if len(outside):
            raise ValueError(
                f"loss=online_contrastive needs labels 0 and 1, got {float(outside[0]):g}; loss=contrastive_pairs "
                "supports numbers between 0 and 1, and loss=cosent all numbers"
            )

    def of_update(self, embeddings: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        apart = distances(taken(embeddings, pairs.left), taken(embeddings, pairs.right), self.distance)
        on_cpu = pairs.labels == 1
        nearest, farthest = self._borders(apart.detach(), on_cpu)
        alike = on_cpu.to(apart.device, non_blocking=True)
        terms = torch.where(alike, apart.square(), (self.margin - apart).clamp(min=0).square())
        hard = torch.where(alike, apart > nearest, apart < farthest)
        factor = len(apart) if self.reduction == "sum" else 1  # The trainer divides by the number of pairs.
        return torch.where(hard, terms, 0.0) * factor, apart

    @staticmethod
    def _borders(apart: Tensor, alike: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the distance above which positive pairs are hard, and the one below which negative pairs are hard.

        alike: [n] bool on the CPU, True for positive pairs.
        """
        positive, negative = (taken(apart, of.nonzero().squeeze(1)) for of in (alike, ~alike))
        nearest = negative.min() if len(negative) else positive.mean()
        farthest = positive.max() if len(positive) else negative.mean()
        return nearest, farthest
