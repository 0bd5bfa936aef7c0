"""Helpers of losses on pairs: columns 0 (chosen) and 1 (rejected), smoothing, log-ratios, metrics."""

from __future__ import annotations

import torch
from torch import Tensor

from rankpo.losses.base import require_below, require_choice, require_reference
from rankpo.losses.maths import at_least_float32, negative_log_sigmoid
from rankpo.types import Labels

KINDS = ("sigmoid", "hinge")


def pair_scores(scores: Tensor) -> Tensor:
    """Returns the scores in at least float32; raises ValueError unless there are columns for chosen and rejected."""
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ValueError(f"a loss on pairs needs scores [B, 2] (chosen, rejected), got shape {list(scores.shape)}")
    return at_least_float32(scores)


def fixed_reference(loss: object, reference: Tensor | None) -> Tensor:
    """Returns the reference scores as a constant in at least float32; raises ValueError if there are none."""
    return pair_scores(require_reference(loss, reference)).detach()


def gap(values: Tensor) -> Tensor:
    """chosen - rejected [B] of values [B, 2 or more]."""
    return values[:, 0] - values[:, 1]


def per_token(logps: Tensor, lengths: Tensor | None) -> Tensor:
    """Means per scored token [B, 2] of sums [B, 2 or more]; without lengths returns the scores unchanged.

    The mean over zero tokens is 0.
    """
    return logps[:, :2] if lengths is None else logps[:, :2] / lengths[:, :2].clamp(min=1)


def weights_of_means(labels: Labels) -> dict[str, Tensor]:
    """Weights [B] of losses on means per token: 0 if the chosen or the rejected completion has no scored token."""
    ones = torch.ones(len(labels), device=labels.relevance.device)
    if labels.lengths is None:
        return {"loss": ones}
    return {"loss": ones * (labels.lengths[:, :2] > 0).all(1)}


def chosen_nll(logps: Tensor, lengths: Tensor | None, nll: str) -> Tensor:
    """Negative log-probability [B] of the chosen completion in nats: `sum` or `mean` over its tokens."""
    return -(per_token(logps, lengths) if nll == "mean" else logps)[:, 0]


def preference(z: Tensor, kind: str, label_smoothing: float | Tensor = 0.0) -> Tensor:
    """Loss [B] of scaled gaps z = βD [B]: `sigmoid` (1 - ε)ℓ(z) + εℓ(-z), or `hinge` max(0, 1 - z).

    label_smoothing: ε, a number or one per pair [B]; the hinge has none.
    """
    if kind == "hinge":
        return (1 - z).clamp(min=0)
    return (1 - label_smoothing) * negative_log_sigmoid(z) + label_smoothing * negative_log_sigmoid(-z)


def check_preference(kind: str, label_smoothing: float) -> None:
    """Raises ValueError for an unknown kind, ε outside [0, .5) (ε ≥ .5 does not learn the order), ε with hinge."""
    require_choice(KINDS, kind=kind)
    require_below(0.5, label_smoothing=label_smoothing)
    if kind == "hinge" and label_smoothing > 0:
        raise ValueError(f"label_smoothing must be 0 with kind=hinge, got {label_smoothing}; or set kind=sigmoid")


def pair_metrics(scores: Tensor, rewards: Tensor, lengths: Tensor | None = None) -> dict[str, Tensor]:
    """`rewards/*` and `scores/*` (`logps/*` where lengths are given): chosen, rejected, margins, accuracies, [B] each.

    scores, rewards [B, 2 or more]: raw scores, and β·h with the temperature inside. Ties count as wrong.
    """
    metrics: dict[str, Tensor] = {}
    for group, values in (("rewards", rewards.detach()), ("scores" if lengths is None else "logps", scores.detach())):
        metrics[f"{group}/chosen"] = values[:, 0]
        metrics[f"{group}/rejected"] = values[:, 1]
        metrics[f"{group}/margins"] = gap(values)
        metrics[f"{group}/accuracies"] = (gap(values) > 0).to(values.dtype)
    return metrics


def soft_bradley_terry(gaps: Tensor, labels: Labels) -> Tensor:
    """[B] cross-entropy of σ(t_w - t_l) against the confidence c in [.5, 1]; the optimum is σ(gap) = c. gaps: [B]."""
    certain = labels.confidence.clamp(0.5, 1.0)
    return certain * negative_log_sigmoid(gaps) + (1 - certain) * negative_log_sigmoid(-gaps)
