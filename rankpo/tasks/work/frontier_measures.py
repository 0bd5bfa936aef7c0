"""Measures of task=frontier: the evaluators for choosing and for testing, and the two metrics of a frontier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rankpo.errors import ConfigError
from rankpo.evaluation.base import Evaluator
from rankpo.tasks.evaluators import evaluators_of
from rankpo.tasks.models import ModelOfRun
from rankpo.tasks.work.mixing import Say

if TYPE_CHECKING:
    from rankpo.config.experiment import Experiment
    from rankpo.models.base import RankingModel
    from rankpo.models.kind import ModelKind
    from rankpo.tasks.frontier import Frontier


@dataclass(frozen=True, kw_only=True)
class Measures:
    """The evaluators for choosing and for testing, and the two metrics to trade off."""

    choosing: Sequence[Evaluator]
    testing: Sequence[Evaluator]
    kept: str
    agreement: str


def measures_of(
    task: Frontier, experiment: Experiment, config: ModelKind, run: ModelOfRun | None, say: Say
) -> Measures:
    """The measures of a task. Raises ConfigError if a retention or agreement metric is missing, or a name of task.test is
    unknown."""
    loss = experiment.loss if run is None else run.loss
    evaluators = evaluators_of(config, loss, experiment, task.metrics, say, 100)
    names = [evaluator.name for evaluator in evaluators]
    if strange := [name for name in task.test if name not in names]:
        raise ConfigError([f"task.test names {strange[0]}, and eval_datasets holds {', '.join(names) or 'nothing'}"])
    choosing = [evaluator for evaluator in evaluators if evaluator.name not in task.test]
    known = [f"{evaluator.name}/{metric}" for evaluator in choosing for metric in evaluator.metrics]
    collections = [evaluator for evaluator in choosing if evaluator.retained]
    kept = task.kept or next((f"{one.name}/{metric}" for one in collections for metric in one.metrics), None)
    agreement = task.agreement or next((name for name in known if name.endswith("/accuracy")), None)
    problems = []
    for key, name, lacks in (
        ("kept", kept, "a collection with relevance judgements"),
        ("agreement", agreement, "preference pairs"),
    ):
        if name is None:
            problems.append(f"task.{key}: add {lacks} to eval_datasets; models are chosen by it")
        elif name not in known:
            problems.append(f"task.{key}={name} is not measured; allowed: {', '.join(known) or 'none'}")
    if problems or kept is None or agreement is None:
        raise ConfigError(problems)
    testing = [evaluator for evaluator in evaluators if evaluator.name in task.test]
    return Measures(choosing=choosing, testing=testing, kept=kept, agreement=agreement)


def measured(model: RankingModel, evaluators: Sequence[Evaluator]) -> dict[str, float]:
    """Metrics by dataset and name."""
    return {
        f"{evaluator.name}/{name}": value
        for evaluator in evaluators
        for name, value in evaluator.evaluate(model).metrics.items()
    }
