"""The optimizer of a training run."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from rankpo.config.experiment import Experiment
    from rankpo.models.base import RankingModel


def make_optimizer(experiment: Experiment, model: RankingModel) -> torch.optim.Optimizer:
    """Excludes biases and norms (all one-dimensional parameters) from weight decay."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, object]] = [{"params": [p for p in trained if p.dim() > 1]}]
    if flat := [p for p in trained if p.dim() <= 1]:
        groups.append({"params": flat, "weight_decay": 0.0})
    return experiment.optimizer.make(params=[group for group in groups if group["params"]])
