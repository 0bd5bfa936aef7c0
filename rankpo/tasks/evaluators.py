"""The evaluators of eval_datasets, and the check of trainer.best_metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rankpo.data.shape import declared
from rankpo.errors import ConfigError
from rankpo.evaluation.choose import Choice
from rankpo.evaluation.means import mean_names

if TYPE_CHECKING:
    from rankpo.config.experiment import Experiment
    from rankpo.evaluation.base import Evaluator
    from rankpo.losses.base import Loss
    from rankpo.models.kind import AnyKind


def make_evaluators(
    experiment: Experiment, metrics: Sequence[str], say: Callable[[str], None], top_k: int = 100
) -> list[Evaluator]:
    """The evaluator of every entry of eval_datasets. top_k: documents kept per query, more if a metric has a deeper cut."""
    return evaluators_of(experiment.model, experiment.loss, experiment, metrics, say, top_k)


def evaluators_of(
    kind: AnyKind,
    loss: Loss,
    experiment: Experiment,
    metrics: Sequence[str],
    say: Callable[[str], None],
    top_k: int,
) -> list[Evaluator]:
    """Like `make_evaluators`, for a kind and a loss that differ from the experiment's, such as those of a run."""
    choice = Choice(cache_dir=experiment.cache_dir, say=say, metrics=metrics, top_k=top_k)
    made = []
    for dataset in map(declared, experiment.eval_datasets):
        evaluator = choice.evaluator(dataset, kind.gives, loss)
        evaluator.collection = dataset.collection
        made.append(evaluator)
    return made


def check_best_metric(name: str | None, evaluators: Sequence[Evaluator]) -> None:
    """Raises ConfigError, before training, if no evaluation computes the metric."""
    if name is None:
        return
    known = [f"{evaluator.name}/{metric}" for evaluator in evaluators for metric in evaluator.metrics]
    known += mean_names(evaluators)
    if name not in known and name not in [metric.split("/", 1)[1] for metric in known]:
        allowed = ", ".join(known) or "none: eval_datasets is empty, and trainer.holdout is null"
        raise ConfigError([f"trainer.best_metric={name} is not measured; allowed: {allowed}"])
