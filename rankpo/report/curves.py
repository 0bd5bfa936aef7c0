"""Learning curves of a report: one line for each group of runs, the mean over its seeds with a band."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rankpo.report import charts, palette
from rankpo.report.groups import Group
from rankpo.report.runs import Run

TRAINING = {
    "train/loss": "training loss",
    "train/rewards/accuracies": "training pairs ranked as preferred",
    "train/scores/accuracies": "training positives ranked first",
    "train/grad_norm": "gradient norm",
    "train/learning_rate": "learning rate",
    "train/tokens_per_second": "tokens per second",
}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A chart of one metric: its name in the logs, a title in words, and the SVG."""

    metric: str
    title: str
    svg: str


@dataclass(frozen=True, kw_only=True)
class Change:
    """A run's first and last evaluation. values: (first, last) by metric."""

    run: str
    group: Group
    values: Mapping[str, tuple[float, float]]


def curves(groups: Sequence[Group]) -> list[Curve]:
    """Returns charts of logged metrics: the loss, then evaluations, then the others."""
    runs = [run for group in groups for run in group.runs]
    logged = [name for name in TRAINING if any(run.curve(name) for run in runs)]
    found = []
    for name in [*logged[:1], *_distinct(runs), *logged[1:]]:
        svg = charts.lines([series(group, name) for group in groups], "update", name.partition("/")[2])
        if svg:
            found.append(Curve(metric=name, title=TRAINING.get(name, name.removeprefix("eval/")), svg=svg))
    return found


def _distinct(runs: Sequence[Run]) -> list[str]:
    """The metrics of evaluations, without those whose values equal those of a metric with a shorter name."""
    names = sorted({name for run in runs for name in run.metrics("eval/")}, key=lambda name: (len(name), name))
    seen: dict[str, str] = {}
    for name in names:
        seen.setdefault(repr([run.curve(name) for run in runs]), name)
    return sorted(seen.values())


def series(group: Group, metric: str) -> charts.Series:
    """The mean over the group's runs at each update that one of them logged, and a band of one standard deviation."""
    by_step: dict[float, list[float]] = {}
    for run in group.runs:
        for step, value in run.curve(metric):
            by_step.setdefault(step, []).append(value)
    points = [(step, statistics.fmean(values)) for step, values in sorted(by_step.items())]
    spreads = [(step, statistics.stdev(values) if len(values) > 1 else 0.0) for step, values in sorted(by_step.items())]
    band = [(step, mean - spread, mean + spread) for (step, mean), (_, spread) in zip(points, spreads, strict=True)]
    return charts.Series(
        name=group.title,
        key=group.key,
        colour=palette.colour(group.number),
        points=points,
        band=band if any(spread for _, spread in spreads) else (),
        dash=palette.dash(group.number),
    )


def changes(groups: Sequence[Group]) -> list[Change]:
    """The first and the last evaluation of every run that was evaluated more than once while it trained."""
    found = []
    for group in groups:
        for run in group.runs:
            curves = {name.removeprefix("eval/"): run.curve(name) for name in run.metrics("eval/")}
            values = {name: (curve[0][1], curve[-1][1]) for name, curve in curves.items() if len(curve) > 1}
            if values:
                found.append(Change(run=run.name, group=group, values=values))
    return found


def status(run: Run) -> str:
    """Returns the status of a run."""
    updates = int(run.steps[-1]["step"]) if run.steps else 0
    if not run.steps:
        return "evaluated only" if run.evaluations else "no metrics"
    return f"finished after {updates} updates" if run.record else f"not finished: {updates} updates so far"
