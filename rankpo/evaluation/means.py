"""Means of metrics over the evaluators of one collection, such as the parts of a holdout or the sets of NanoBEIR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rankpo.evaluation.base import Evaluator

MEAN = "mean"  # The name for the mean of the members' first metrics if those differ.


def mean_names(evaluators: Sequence[Evaluator]) -> list[str]:
    """The names of all means that `with_means` can add, those of a collection's main metric first."""
    return [name for members in _collections(evaluators).values() for name in _names(members)]


def main_metric(evaluators: Sequence[Evaluator]) -> str:
    """Returns the main metric: the first metric of a single evaluator, or the mean of the first metrics of several."""
    first = evaluators[0]
    if first.collection is None or len(_collections(evaluators)[first.collection]) < 2:
        return f"{first.name}/{first.metrics[0]}"
    return mean_names(evaluators)[0]


def with_means(metrics: Mapping[str, float], evaluators: Sequence[Evaluator]) -> dict[str, float]:
    """Adds means over each collection with two or more members, for metrics that all members have.

    metrics: by `evaluator/metric`. Where the first metrics of members differ, `collection/mean` is the mean of those.
    """
    made = dict(metrics)
    for name, members in _collections(evaluators).items():
        shared = members[0].metrics
        for metric in [metric for metric in shared if all(metric in member.metrics for member in members)]:
            made |= _mean(f"{name}/{metric}", [f"{member.name}/{metric}" for member in members], metrics)
        if len({member.metrics[0] for member in members}) > 1:
            made |= _mean(f"{name}/{MEAN}", [f"{member.name}/{member.metrics[0]}" for member in members], metrics)
    return made


def _mean(name: str, parts: Sequence[str], metrics: Mapping[str, float]) -> dict[str, float]:
    """Returns the mean of the parts, or {} if one of them has no value."""
    values = [metrics[part] for part in parts if part in metrics]
    return {name: sum(values) / len(values)} if len(values) == len(parts) else {}


def _names(members: Sequence[Evaluator]) -> list[str]:
    name = str(members[0].collection)
    shared = [metric for metric in members[0].metrics if all(metric in member.metrics for member in members)]
    differ = len({member.metrics[0] for member in members}) > 1
    return [f"{name}/{metric}" for metric in ([MEAN] if differ else []) + shared]


def _collections(evaluators: Sequence[Evaluator]) -> dict[str, list[Evaluator]]:
    """The members of each collection that has two or more."""
    found: dict[str, list[Evaluator]] = {}
    for evaluator in evaluators:
        if evaluator.collection is not None:
            found.setdefault(evaluator.collection, []).append(evaluator)
    return {name: members for name, members in found.items() if len(members) > 1}
