"""Reduction of losses: global denominators, and the sum over terms."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rankpo.losses.base import Loss
from rankpo.types import Labels, LossOutput


def denominators(loss: Loss, labels: Labels) -> dict[str, float]:
    """Sums of the weights of each term, as plain numbers."""
    return sums(loss.weights(labels))


def sums(weights: Mapping[str, Tensor]) -> dict[str, float]:
    """The sum of the weights [B] of each term, as plain numbers."""
    return {name: float(of_term.double().sum()) for name, of_term in weights.items()}


def total(output: LossOutput, sums: Mapping[str, float]) -> Tensor:
    """Σ over terms of scale · Σ losses·weights / global Σ weights; a term of total weight 0 contributes 0."""
    value = _part(output.losses, output.weights, sums["loss"])
    for name, term in output.terms.items():
        value = value + term.scale * _part(term.losses, term.weights, sums[name])
    return value


def _part(losses: Tensor, weights: Tensor | None, denominator: float) -> Tensor:
    if denominator == 0:
        return torch.where(torch.isfinite(losses), losses, 0).sum() * 0
    weighted = losses if weights is None else torch.where(weights > 0, losses * weights, 0)
    return weighted.sum() / denominator
