"""Held-out training data of a run: its datasets, its evaluators and its loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from rankpo.data.holdout import Drawn, Holdout, TrainingPart, draw
from rankpo.errors import ConfigError
from rankpo.evaluation.choose import Choice
from rankpo.evaluation.held_out import LossEvaluator, RankedPart
from rankpo.evaluation.means import main_metric
from rankpo.tasks.work.lessons import COMPLETIONS, Lesson, held_out_material, objective
from rankpo.trainers.objective import HeldOutLoss

if TYPE_CHECKING:
    from rankpo.config.experiment import Experiment
    from rankpo.data.dataset import Dataset
    from rankpo.evaluation.base import Evaluator
    from rankpo.losses.base import Loss
    from rankpo.models.inputs import Inputs
    from rankpo.tasks.references import StartModel
    from rankpo.trainers.basic import BasicTrainer
    from rankpo.trainers.settings import TrainerSettings

NAME = "holdout"  # The name of the evaluators; with several datasets, the name of their means.
Say = Callable[[str], None]


@dataclass(kw_only=True)
class HeldOut:
    """The evaluators of held-out data.

    evaluators: all of them. losses: each lesson with held-out data, with the evaluator of its loss.
    """

    evaluators: list[Evaluator] = field(default_factory=list)
    losses: list[tuple[Lesson, LossEvaluator]] = field(default_factory=list)

    def settings(self, given: TrainerSettings) -> TrainerSettings:
        """The settings with the main metric of the held-out data as best_metric, unless another is given."""
        if given.best_metric is not None or not self.evaluators:
            return given
        return replace(given, best_metric=main_metric(self.evaluators))

    def measure_losses(self, trainer: BasicTrainer, inputs: Inputs, start: StartModel) -> None:
        """Passes the trainer of the run to the evaluators of losses. Must be called before the first update."""
        for lesson, evaluator in self.losses:
            material = held_out_material(start.experiment, inputs, lesson, start.say)
            evaluator.measure = HeldOutLoss(trainer, objective(start, material, training=False))


def drawn_of(experiment: Experiment, say: Say) -> Drawn | None:
    """The queries that are held out, or None if trainer.holdout is null. Raises ConfigError if they cannot be drawn."""
    size = experiment.settings.holdout
    if size is None:
        return None
    by_texts = not experiment.model.gives & COMPLETIONS
    try:
        holdout = Holdout(size=size, seed=experiment.seed, by_texts=by_texts)
        return draw(experiment.datasets, holdout, experiment.cache_dir, say)
    except ValueError as error:
        raise ConfigError([str(error)]) from error


def trained_parts(datasets: Sequence[Dataset], drawn: Drawn | None) -> list[Dataset]:
    """The datasets without their held-out queries."""
    return list(datasets) if drawn is None else [TrainingPart(dataset, drawn) for dataset in datasets]


def held_out(
    experiment: Experiment, lessons: Sequence[Lesson], drawn: Drawn, metrics: Sequence[str], say: Say
) -> HeldOut:
    """The evaluators of the held-out queries of each dataset, and of each lesson's loss on them.

    lessons: the lessons of the whole data.
    """
    found = HeldOut()
    choice = Choice(cache_dir=experiment.cache_dir, say=say, metrics=metrics)
    single = len(experiment.datasets) == 1
    for lesson in lessons:
        parts = [
            RankedPart(dataset, drawn, NAME if single else f"{NAME}_{dataset.name}", lesson.loss.on_pairs)
            for dataset in lesson.datasets
        ]
        for part in parts:
            if (evaluator := _ranking(experiment, choice, lesson.loss, part)) is not None:
                evaluator.collection = None if single else NAME
                found.evaluators.append(evaluator)
        if lesson.trainer.load().has_held_out_loss:
            own = replace(lesson, datasets=parts, loss=lesson.loss.without_replay())
            name = NAME if len(lessons) == 1 else f"{NAME}_{lesson.name}"
            found.losses.append((own, LossEvaluator(name, parts, experiment.cache_dir, say)))
    found.evaluators += [evaluator for _, evaluator in found.losses]
    return found


def _ranking(experiment: Experiment, choice: Choice, loss: Loss, part: RankedPart) -> Evaluator | None:
    """The evaluator of one dataset's held-out queries; None if no query has candidates to compare."""
    gives = experiment.model.gives
    if not gives & (COMPLETIONS | {"vectors"}) and part.names_single_texts:
        return None
    return choice.evaluator(part, gives, loss)
