"""Experiment: the checked contents of a config."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rankpo.config.construct import Maker
    from rankpo.data.dataset import Dataset
    from rankpo.data.mixing import Mixing
    from rankpo.judges.base import Judge
    from rankpo.losses.base import Loss
    from rankpo.mining.settings import MiningSettings
    from rankpo.models.kind import AnyKind
    from rankpo.runs.callbacks import Callback
    from rankpo.trainers.schedules import Schedule
    from rankpo.trainers.settings import TrainerSettings


@dataclass(frozen=True, kw_only=True)
class OwnObjective:
    """The loss, trainer and dataloader of one dataset, in place of those of the run."""

    loss: Loss
    trainer: Maker
    dataloader: Maker


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The checked inputs of a task.

    objectives: for each of `datasets`, its own objective, or None for that of the run. mixing: how several datasets are
    mixed. config: the resolved config, for the run directory. explicit: keys under `model` that the command line sets.
    """

    task: Callable[[Experiment], object]
    loss: Loss
    model: AnyKind
    datasets: Sequence[Dataset]
    objectives: Sequence[OwnObjective | None]
    mixing: Mixing
    eval_datasets: Sequence[Dataset]
    replay_datasets: Sequence[Dataset]
    trainer: Maker
    settings: TrainerSettings
    dataloader: Maker
    replay_dataloader: Maker
    optimizer: Maker
    schedule: Schedule
    tracker: Mapping[str, object]
    exp_name: str
    seed: int
    runs_dir: Path
    cache_dir: Path
    run_dir: Path
    overwrite: bool
    resume: str | None
    allow_changes: bool
    cache_reference_logprobs: bool
    load_reference_logprobs: str | None
    config: Mapping[str, Any]
    explicit: frozenset[str]
    callbacks: Sequence[Callback] = ()  # Objects that a Python caller passes.
    mining: MiningSettings | None = None  # Set with task=mine.
    judge: Judge | None = None  # Set with task=annotate.


def with_precision(experiment: Experiment, precision: str) -> Experiment:
    """The experiment with the chosen precision, so that its config holds that precision instead of "auto"."""
    settings = replace(experiment.settings, precision=precision)
    trainer = {**experiment.config["trainer"], "precision": precision}
    return replace(experiment, settings=settings, config={**experiment.config, "trainer": trainer})


def run(experiment: Experiment) -> None:
    """Runs the task."""
    experiment.task(experiment)
