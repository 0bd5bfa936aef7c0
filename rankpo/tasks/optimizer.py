"""The optimizer of a training run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from rankpo.trainers.muon import Muon, hidden_matrices

if TYPE_CHECKING:
    from rankpo.config.construct import Maker
    from rankpo.config.experiment import Experiment
    from rankpo.models.base import RankingModel

FUSED_DEVICES = ("cuda", "cpu")


def make_optimizer(experiment: Experiment, model: RankingModel) -> torch.optim.Optimizer:
    """The optimizer, without weight decay for biases and norms (all one-dimensional parameters).

    `RankingModel.learning_rates` sets separate learning rates for some parameters.
    """
    rates = model.learning_rates()
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    trained = [parameter for name, parameter in named.items() if name not in rates]
    groups: list[dict[str, object]] = [{"params": [p for p in trained if p.dim() > 1]}]
    if experiment.optimizer.load() is Muon:
        inner = hidden_matrices(model, model.base.get_output_embeddings())
        groups = [{"params": [p for p in trained if id(p) in inner], "muon": True}]
        groups.append({"params": [p for p in trained if p.dim() > 1 and id(p) not in inner]})
    if flat := [p for p in trained if p.dim() <= 1]:
        groups.append({"params": flat, "weight_decay": 0.0})
    groups += [{"params": [named[name]], "lr": rate} for name, rate in rates.items() if name in named]
    given = [group for group in groups if group["params"]]
    return experiment.optimizer.make(params=given, **_fused(experiment.optimizer, trained))


def make_optimizer_of(experiment: Experiment, weights: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of a run for other weights."""
    return experiment.optimizer.make(params=weights, **_fused(experiment.optimizer, weights))


def _fused(optimizer: Maker, trained: Sequence[torch.nn.Parameter]) -> dict[str, bool]:
    """Returns fused=True for Adam and AdamW, whose fused form also updates sharded tensors, which torch's other optimizers
    do not, unless the config already chooses how the optimizer updates the tensors. On a CPU, AdamW of MiniLM takes 16 in place of 135 ms, since it reads each tensor once."""
    chosen = {"fused", "foreach", "capturable", "differentiable"} & optimizer.arguments.keys()
    fits = all(parameter.device.type in FUSED_DEVICES and parameter.is_floating_point() for parameter in trained)
    known = optimizer.load() in (torch.optim.Adam, torch.optim.AdamW)
    return {"fused": True} if known and fits and trained and not chosen else {}
