"""Distillation losses on a teacher's scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankpo.losses.base import require_choice, require_positive
from rankpo.losses.lists import ListLoss, both, gaps, mean_over
from rankpo.losses.maths import masked_log_softmax
from rankpo.types import Labels


@dataclass(frozen=True, kw_only=True)
class MarginMSELoss(ListLoss):
    """Mean over pairs of ((s_i - s_j) - (t_i - t_j))², t = teacher. https://arxiv.org/abs/2010.02666.

    pairs: `positive`, i among the most relevant candidates and j below them (a list whose relevance is all equal
    has none); `all` pairs i ≠ j, which needs no labels. The margins have the teacher's units; τ must bring the
    scores to the same units.
    """

    target: str = "teacher"
    pairs: str = "positive"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(("positive", "all"), pairs=self.pairs)

    def _kept(self, labels: Labels) -> Tensor:
        """Returns [B, G, G] bool: the pairs (i, j) that enter the loss."""
        if self.pairs == "all":
            diagonal = torch.eye(labels.mask.shape[1], dtype=torch.bool, device=labels.mask.device)
            return both(labels.mask) & ~diagonal
        relevance = labels.relevance
        best = relevance == torch.where(labels.mask, relevance, -torch.inf).amax(1, keepdim=True)
        return both(labels.mask) & best[:, :, None] & ~best[:, None, :]

    def usable(self, target: Tensor, labels: Labels) -> Tensor:
        return self._kept(labels).flatten(1).any(1)

    def of_lists(self, scores: Tensor, target: Tensor, labels: Labels) -> Tensor:
        return mean_over((gaps(scores) - gaps(target)).square(), self._kept(labels))


@dataclass(frozen=True, kw_only=True)
class KLDistillLoss(ListLoss):
    """KL(p ‖ softmax(s)) with p = softmax(t/T_t), t = teacher; for lists of two or more candidates.

    teacher_temperature: T_t. scale_by_t2: multiplies by τ², as sentence-transformers does: at τ .02 that is 4e-4.
    """

    target: str = "teacher"
    teacher_temperature: float = 1.0
    scale_by_t2: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(teacher_temperature=self.teacher_temperature)

    def usable(self, target: Tensor, labels: Labels) -> Tensor:
        return labels.mask.sum(1) > 1

    def of_lists(self, scores: Tensor, target: Tensor, labels: Labels) -> Tensor:
        wanted = masked_log_softmax(target / self.teacher_temperature, labels.mask)
        # Masked entries are 0 in both tensors, so their product with the difference is 0.
        divergence = (wanted.exp() * (wanted - masked_log_softmax(scores, labels.mask))).sum(1)
        return divergence * self.temperature**2 if self.scale_by_t2 else divergence
