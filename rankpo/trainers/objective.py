"""Objective: a loss with its data, for one dataset or for all together, and its trainer inside the trainer of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rankpo.data.loaders.ranking import DataLoader
from rankpo.data.loaders.stream import StreamLoader
from rankpo.losses.base import Loss
from rankpo.models.reference import Reference
from rankpo.runs import processes
from rankpo.runs.running import RunningMetrics
from rankpo.trainers.teacher import TeacherEmbeddings

if TYPE_CHECKING:
    from rankpo.trainers.basic import BasicTrainer


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A loss with the loader of its data, and the inputs that it needs.

    name: the name of the dataset. trainer: the class that trains the loss. reference, stored, teacher, replay: as in
    `Parts`.
    """

    name: str
    trainer: type[BasicTrainer]
    loss: Loss
    loader: DataLoader | StreamLoader
    reference: Reference | None = None
    stored: np.ndarray | None = None
    teacher: TeacherEmbeddings | None = None
    replay: DataLoader | None = None


class NamedMetrics(RunningMetrics):
    """The metrics of one of several datasets, with its name as prefix. Its loss is also added to the loss of the run."""

    def __init__(self, name: str, run: RunningMetrics) -> None:
        super().__init__()
        self.name = name
        self.run = run

    def add(self, name: str, values: Tensor) -> None:
        self.run.add(f"{self.name}/{name}", values)

    def add_sum(self, name: str, value: Tensor) -> None:
        self.run.add_sum(f"{self.name}/{name}", value)
        if name == "loss":
            self.run.add_sum("loss", value)


def trainer_within(run: BasicTrainer, objective: Objective) -> BasicTrainer:
    """The trainer of an objective with the model, strategy and log of a run. Raises ValueError if loss and data do not fit."""
    return objective.trainer(
        settings=run.settings,
        accelerator=run.accelerator,
        policy=run.policy,
        optimizer=run.optimizer,
        schedule=run.schedule,
        logger=run.logger,
        checkpoints=run.checkpoints,
        save_final=run.save_final,
        loss=objective.loss,
        loader=objective.loader,
        reference=objective.reference,
        stored=objective.stored,
        teacher=objective.teacher,
        replay=objective.replay,
        within=run,
    )


class HeldOutLoss:
    """The mean loss over the queries of a loader's first epoch, with the current weights. All ranks must call it."""

    def __init__(self, run: BasicTrainer, objective: Objective) -> None:
        self.run = run
        self.trainer = trainer_within(run, objective)
        self.name = objective.name

    def __call__(self) -> float:
        trainer = self.trainer
        trainer.state.loss_state = self.run.loss_state_of(self.name)
        value, queries = 0.0, 0
        random = torch.get_rng_state()
        for step in range(trainer.loader.updates_per_epoch):
            update = trainer.begin(trainer.prepare(step))
            with trainer.policy.evaluating():
                value += trainer.loss_value(update) * update.num_queries
            queries += update.num_queries
        torch.set_rng_state(random)
        trainer.running.clear()
        device = trainer.policy.device
        return float(processes.sum_over_ranks(torch.tensor(value, dtype=torch.float64, device=device))) / queries
