"""Lessons: a lesson is a group of datasets and the loss that trains on them.

A run has one lesson with all datasets, or one lesson for each dataset.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import xxhash

from rankpo.config.construct import Maker
from rankpo.data.loaders.stream import StreamLoader, Window
from rankpo.data.loaders.turns import Turns
from rankpo.data.loaders.unpaired_preference import UnpairedPreferenceDataLoader
from rankpo.data.shape import Evaluable, declared, weight_of
from rankpo.data.table import open_table
from rankpo.errors import ConfigError
from rankpo.trainers.empty_updates import check
from rankpo.trainers.objective import Objective
from rankpo.trainers.several import SeveralLoaders, SeveralTrainer

if TYPE_CHECKING:
    from rankpo.config.experiment import Experiment
    from rankpo.data.dataset import Dataset
    from rankpo.data.loaders.ranking import DataLoader
    from rankpo.data.table import ExampleTable
    from rankpo.losses.base import Loss
    from rankpo.models.inputs import Inputs
    from rankpo.tasks.references import StartModel
    from rankpo.trainers.basic import BasicTrainer

COMPLETIONS = frozenset({"token_logps", "rewards"})  # A model kind with one of these outputs reads completions.
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """Datasets that one loss trains on; each update draws from all of them.

    name: the name of the dataset, or "all". trainer, dataloader: makers of the classes that the loss requires.
    """

    name: str
    datasets: Sequence[Dataset]
    loss: Loss
    trainer: Maker
    dataloader: Maker


@dataclass(frozen=True, kw_only=True)
class Material:
    """The table and the loader of a lesson's training data or of its held-out data."""

    lesson: Lesson
    table: ExampleTable
    loader: DataLoader | StreamLoader


def lessons_of(experiment: Experiment, datasets: Sequence[Dataset]) -> list[Lesson]:
    """Returns the lessons of the training data.

    With dataloader.mixing=mixed, one lesson contains all datasets. With any other value, each update draws from a
    single dataset, and each dataset has its own lesson.

    datasets: the datasets of the experiment, without held-out data.
    """
    run = Lesson(
        name="all",
        datasets=datasets,
        loss=experiment.loss,
        trainer=experiment.trainer,
        dataloader=experiment.dataloader,
    )
    if experiment.mixing.mixing == "mixed":
        return [run]
    lessons = []
    for dataset, own in zip(datasets, experiment.objectives, strict=True):
        lesson = replace(run, name=dataset.name, datasets=[dataset])
        if own is not None:
            lesson = replace(lesson, loss=own.loss, trainer=own.trainer, dataloader=own.dataloader)
        lessons.append(lesson)
    return lessons


def all_needs(experiment: Experiment) -> frozenset[str]:
    """The parts of the model that the losses of all datasets need."""
    losses = [experiment.loss if own is None else own.loss for own in experiment.objectives]
    return frozenset[str]().union(*(loss.needs for loss in losses or [experiment.loss]))


def material(experiment: Experiment, inputs: Inputs, lesson: Lesson, say: Say) -> Material:
    """The training data of a lesson. Raises ConfigError for data that its loss cannot use."""
    streamed = next((dataset for dataset in map(declared, lesson.datasets) if dataset.streaming), None)
    if streamed is not None:
        return _streamed(experiment, inputs, lesson, streamed, say)
    table = open_table(experiment.cache_dir, lesson.datasets, inputs.pieces(), say)
    loader = lesson.dataloader.make(
        table=table,
        weights=weights(lesson.datasets),
        left_out=_equal_pairs(inputs, lesson, table, say),
        batch_size=experiment.settings.batch_size,
        seed=experiment.seed,
    )
    _check_teaches(lesson, loader, say)
    return Material(lesson=lesson, table=table, loader=loader)


def _check_teaches(lesson: Lesson, loader: DataLoader, say: Say) -> None:
    """Raises ConfigError if no part of the data gives a training signal. Reports the amount of data that gives none."""
    try:
        check(lesson.loss, loader, say)
    except ValueError as error:
        raise ConfigError([str(error) if lesson.name == "all" else f"datasets.{lesson.name}: {error}"]) from error


def _streamed(experiment: Experiment, inputs: Inputs, lesson: Lesson, dataset: Evaluable, say: Say) -> Material:
    """Returns the training data of a lesson with a streamed dataset. The table contains the first window only."""
    if issubclass(lesson.dataloader.load(), UnpairedPreferenceDataLoader):
        name = type(lesson.loss).__name__
        raise ConfigError([f"datasets.{dataset.name}.streaming=true: {name} must count all its completions; set false"])
    run = xxhash.xxh3_64_hexdigest(str(experiment.run_dir.resolve()).encode())
    folder = experiment.cache_dir / "streams" / run  # Not shared: another run may be at another window.

    def opened(window: Window) -> DataLoader | None:
        table = open_table(folder, [window], inputs.pieces(), _silent)
        left_out = _equal_pairs(inputs, lesson, table, _silent)
        sizes = {"batch_size": experiment.settings.batch_size, "seed": experiment.seed}
        try:
            made: DataLoader = lesson.dataloader.make(table=table, left_out=left_out, **sizes)
        except ConfigError as error:
            if "no usable example" in str(error):
                return None
            raise
        return made

    updates = experiment.settings.max_steps or 1
    loader = StreamLoader(dataset, dataset.window, updates, experiment.seed, opened)
    say(
        f"data {dataset.name} is streamed: drawn in windows of {dataset.window:,} examples; order, equal texts and known "
        "positives reach as far as a window. What is reported here is the first one"
    )
    _check_teaches(lesson, loader.current, say)
    return Material(lesson=lesson, table=loader.table, loader=loader)


def _silent(line: str) -> None:
    """Discards a message, since the messages of each window would fill the log."""


def held_out_material(experiment: Experiment, inputs: Inputs, lesson: Lesson, say: Say) -> Material:
    """Returns the held-out data of a lesson, in batches of nearly equal size.

    Raises ConfigError if the loss cannot use the data.
    """
    table = open_table(experiment.cache_dir, lesson.datasets, inputs.pieces(), say)
    make = partial(lesson.dataloader.make, table=table, seed=experiment.seed)
    try:
        first: DataLoader = make(batch_size=experiment.settings.batch_size)
        even = -(-len(first.items) // first.updates_per_epoch)
        return Material(lesson=lesson, table=table, loader=make(batch_size=even))
    except ConfigError as error:
        raise ConfigError([f"trainer.holdout: {error}; hold out more queries"]) from error


def _equal_pairs(inputs: Inputs, lesson: Lesson, table: ExampleTable, say: Say) -> list[int]:
    """Returns the indices of pairs whose two completions are equal after truncation, and reports their number.

    Such a pair has no training signal.
    """
    if not lesson.dataloader.load().pairs:
        return []
    found = inputs.equal_pairs(table)
    if found:
        say(f"{len(found)} of {len(table)} pairs are excluded: truncated to model.max_length, both answers are equal")
    return found


def weights(datasets: Sequence[Dataset]) -> list[float]:
    """Returns the weight of each dataset. An epoch repeats the examples of a dataset this many times."""
    return [weight_of(dataset) for dataset in datasets]


def objective(start: StartModel, given: Material, training: bool = True) -> Objective:
    """The loss of a lesson with its reference and teacher. training: whether `given` is training data."""
    lesson = given.lesson
    reference, stored = start.reference(lesson.loss, given.table, training)
    return Objective(
        name=lesson.name,
        trainer=lesson.trainer.load(),
        loss=lesson.loss,
        loader=given.loader,
        reference=reference,
        stored=stored,
        teacher=start.teacher(lesson.loss, given.table, lesson.datasets),
    )


def trainer_of(
    experiment: Experiment, objectives: Sequence[Objective], replay: DataLoader | None, parts: dict[str, Any]
) -> BasicTrainer:
    """Returns the trainer of a run.

    replay: the replay data, which the trainer adds to the updates of each loss with a replay_weight > 0.
    parts: the arguments that all trainers have in common.
    """
    if len(objectives) == 1:
        only = objectives[0]
        return only.trainer(
            **parts,
            loss=only.loss,
            loader=only.loader,
            reference=only.reference,
            stored=only.stored,
            teacher=only.teacher,
            replay=replay,
        )
    turns = Turns(
        updates=tuple(item.loader.updates_per_epoch for item in objectives),
        order=experiment.mixing.mixing,
        temperature=experiment.mixing.mixing_temperature,
        seed=experiment.seed,
    )
    if replay is not None and not any(item.loss.replay_weight for item in objectives):
        raise ConfigError(
            [
                "replay_datasets is set, but no loss has a replay_weight > 0; set loss.replay_weight or remove replay_datasets"
            ]
        )
    own = [replace(item, replay=replay if item.loss.replay_weight else None) for item in objectives]
    return SeveralTrainer(
        **parts,
        loss=experiment.loss,
        loader=SeveralLoaders(turns, experiment.seed, sum(item.loader.num_items for item in objectives)),
        objectives=own,
    )
