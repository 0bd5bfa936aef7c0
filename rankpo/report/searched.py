"""Results of task=frontier in a report: one chart for each pair of metrics, the seeds of a recipe as one point."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankpo.evaluation.frontier import pareto_optimal
from rankpo.report import frontier
from rankpo.report.frontier import Front, Point
from rankpo.report.groups import Group
from rankpo.report.stages import SEARCHED, has_search
from rankpo.storage.json_files import read_json


@dataclass(frozen=True, kw_only=True)
class Searched:
    """The searches by one pair of metrics. kept, agreement: the metrics. points: the start model, and the mean of the
    chosen models of each group. counts: the number of measured models of each group."""

    kept: str
    agreement: str
    svg: str
    points: Sequence[Point]
    counts: Sequence[tuple[Group, int]]

    @property
    def groups(self) -> list[Group]:
        return [group for group, _ in self.counts]


def searched(groups: Sequence[Group]) -> list[Searched]:
    """The charts of all groups with results of task=frontier. Raises StorageError for a damaged file."""
    of_metrics: dict[tuple[str, str], list[tuple[Group, list[dict[str, Any]]]]] = {}
    for group in groups:
        records = [_read(run.folder / SEARCHED) for run in group.runs if has_search(run.folder)]
        for metrics in dict.fromkeys((record["kept"], record["agreement"]) for record in records):
            same = [record for record in records if (record["kept"], record["agreement"]) == metrics]
            of_metrics.setdefault(metrics, []).append((group, same))
    return [_chart(kept, agreement, found) for (kept, agreement), found in of_metrics.items()]


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, "run task=frontier again, or leave this folder out of task.runs")


def _chart(kept: str, agreement: str, found: Sequence[tuple[Group, list[dict[str, Any]]]]) -> Searched:
    first = found[0][1][0]["candidates"][0]
    start = Point(
        name="start model",
        key="start",
        number=sum(len(records) for _, records in found) + 1,
        x=first["kept"],
        y=first["agreement"],
        role="baseline",
    )
    chosen = [point for group, records in found if (point := _chosen(group, records)) is not None]
    fronts = [_front(group, record) for group, records in found for record in records]
    points = [start, *chosen]
    drawn = frontier.chart(points, f"share of the start model's {kept} that is kept", agreement, fronts)
    counts = [(group, sum(len(record["candidates"]) for record in records)) for group, records in found]
    return Searched(kept=kept, agreement=agreement, svg=drawn, points=points, counts=counts)


def _chosen(group: Group, records: Sequence[Mapping[str, Any]]) -> Point | None:
    """The mean of the chosen models, one for each seed; None if no search chose a model."""
    models = [record["candidates"][record["chosen"]] for record in records if record["chosen"] is not None]
    if not models:
        return None
    xs, ys = [model["kept"] for model in models], [model["agreement"] for model in models]
    several = len(models) > 1
    return Point(
        name=group.title,
        key=group.key,
        number=group.number,
        x=statistics.fmean(xs),
        y=statistics.fmean(ys),
        x_spread=statistics.stdev(xs) if several else 0.0,
        y_spread=statistics.stdev(ys) if several else 0.0,
        seeds=len(models),
    )


def _front(group: Group, record: Mapping[str, Any]) -> Front:
    """The Pareto-optimal models of one search."""
    measured = [(model["kept"], model["agreement"]) for model in record["candidates"]]
    return Front(key=group.key, number=group.number, places=pareto_optimal(measured, lambda place: place))
