"""Replay: the losses on stage-one data that a loss on preferences can add."""

from __future__ import annotations

from rankpo.losses.base import require_choice
from rankpo.losses.contrastive import ContrastiveLoss
from rankpo.losses.graded_margin import GradedMarginLoss
from rankpo.losses.in_batch import InBatchLoss


def replay_loss(kind: str, temperature: float | None, margin: float | None, unknown: str | None) -> InBatchLoss | None:
    """Returns the loss of a kind, `contrastive` or `graded_margin`; None without a temperature.

    margin: None means 2. unknown: None means `masked`. Raises ValueError for another kind, and for keys of
    `graded_margin` with the kind `contrastive`.
    """
    require_choice(("contrastive", "graded_margin"), replay_kind=kind)
    for name, value in (("replay_margin", margin), ("replay_unknown", unknown)):
        if value is not None and kind != "graded_margin":
            raise ValueError(f"{name}={value} needs replay_kind=graded_margin, got {kind}")
    if temperature is None:
        return None
    if kind == "contrastive":
        return ContrastiveLoss(temperature=temperature)
    margin = 2.0 if margin is None else margin
    return GradedMarginLoss(temperature=temperature, margin=margin, unknown=unknown or "masked")
