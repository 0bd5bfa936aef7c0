"""Numbers of a report: means over seeds, differences from a baseline with tests, and the frontier of alignment."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from rankpo.evaluation.significance import Comparison, compare, grouped, holm, interval
from rankpo.report.frontier import Point
from rankpo.report.groups import Group, is_plain_rankpo, start_of
from rankpo.report.runs import Evaluation, Run

START, ORACLE = "start", "oracle"  # models of an evaluation with a role of their own

Pair = tuple[str, str]  # data set and metric


@dataclass(frozen=True, kw_only=True)
class System:
    """A model of a group of runs that was evaluated. members: {data set: evaluation} for each run of the group."""

    name: str
    model: str
    group: Group
    members: Sequence[Mapping[str, Evaluation]]

    def has(self, pair: Pair) -> bool:
        dataset, metric = pair
        return all(
            dataset in member and any(metric in item for item in member[dataset].items.values())
            for member in self.members
        )

    def seeds(self, pair: Pair) -> list[float]:
        """The metric's mean over queries, for each run of the group."""
        of_members = [grouped(member[pair[0]].items, pair[1]) for member in self.members]
        return [statistics.fmean(values.values()) for values in of_members]

    def by_query(self, pair: Pair) -> dict[str, float]:
        """The metric of each query that all runs of the group have, as a mean over the runs."""
        of_members = [grouped(member[pair[0]].items, pair[1]) for member in self.members]
        shared = [query for query in of_members[0] if all(query in values for values in of_members)]
        return {query: statistics.fmean(values[query] for values in of_members) for query in shared}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One metric of one system. value: the mean over seeds; spread: its standard deviation, 0 for one seed.

    interval: of the mean over queries. comparison: with the baseline; adjusted_p: its p-value after Holm.
    """

    value: float
    spread: float
    seeds: int
    interval: tuple[float, float]
    comparison: Comparison | None
    adjusted_p: float | None = None


Cells = dict[str, dict[Pair, Cell]]


def systems(groups: Sequence[Group]) -> list[System]:
    """Every evaluated model of the groups, in their order."""
    found = []
    for group in groups:
        models = list(dict.fromkeys(item.model for run in group.runs for item in run.evaluations))
        for model in models:
            members = [_evaluations(run, model) for run in group.runs]
            name = group.title if len(models) == 1 else f"{group.title}: {model}"
            found.append(System(name=name, model=model, group=group, members=[m for m in members if m]))
    return found


def _evaluations(run: Run, model: str) -> dict[str, Evaluation]:
    return {item.dataset: item for item in run.evaluations if item.model == model}


def measured(chosen: Sequence[System], wanted: Sequence[str]) -> list[Pair]:
    """(data set, metric) pairs with values by query in any system; `wanted` limits the metrics, if it is not empty.

    A metric without a data set, such as ndcg@10, selects it for every data set.
    """
    evaluations = [evaluation for system in chosen for member in system.members for evaluation in member.values()]
    pairs = [
        (evaluation.dataset, name)
        for evaluation in evaluations
        for name in next(iter(evaluation.items.values()), {})
        if name != "group" and (not wanted or name in wanted or f"{evaluation.dataset}/{name}" in wanted)
    ]
    return _distinct(chosen, list(dict.fromkeys(pairs)))


def _distinct(chosen: Sequence[System], pairs: Sequence[Pair]) -> list[Pair]:
    """Removes duplicate metrics, such as ndcg_exp@10 if it equals ndcg@10 on every query."""
    seen: dict[str, Pair] = {}
    for dataset, metric in pairs:
        values = [
            [item.get(metric) for item in member[dataset].items.values()]
            for system in chosen
            for member in system.members
            if dataset in member
        ]
        kept = seen.setdefault(repr((dataset, values)), (dataset, metric))
        if len(metric) < len(kept[1]):
            seen[repr((dataset, values))] = (dataset, metric)
    return list(seen.values())


def find_baseline(chosen: Sequence[System], wanted: str | None, runs: Sequence[Run]) -> System:
    """The system that the others are compared with: the wanted one, by the name of its row or of its run; else the
    start model of an evaluated run, the run that most others were trained from, or the first.

    Raises ValueError if the wanted one is not among the systems.
    """
    if wanted is not None:
        for system in chosen:
            if wanted == system.name or wanted in (run.name for run in system.group.runs):
                return system
        names = ", ".join(system.name for system in chosen)
        raise ValueError(f"task.baseline={wanted} is not among the evaluated models: {names}")
    start = start_of(runs)
    of_start = [system for system in chosen if start is not None and start in system.group.runs]
    evaluated_start = [system for system in chosen if system.model == START]
    candidates = [*evaluated_start, *reversed(of_start), *chosen]
    return next((system for system in candidates if system.model != ORACLE), candidates[0])


def table(chosen: Sequence[System], pairs: Sequence[Pair], reference: System) -> Cells:
    """{system: {(data set, metric): cell}}, without the pairs that a system lacks; p-values are adjusted by Holm over
    all comparisons of the table."""
    cells: Cells = {}
    for system in chosen:
        cells[system.name] = {pair: _cell(system, pair, reference) for pair in pairs if system.has(pair)}
    return _adjusted(cells)


@lru_cache(maxsize=4096)
def _interval(values: tuple[float, ...]) -> tuple[float, float]:
    """Cached, since a live page is rendered repeatedly with mostly unchanged evaluations."""
    return interval(values)


@lru_cache(maxsize=4096)
def _compare(new: tuple[tuple[str, float], ...], old: tuple[tuple[str, float], ...]) -> Comparison:
    return compare(dict(new), dict(old))


def _cell(system: System, pair: Pair, reference: System) -> Cell:
    values, seeds = system.by_query(pair), system.seeds(pair)
    compared = None
    if system is not reference and reference.has(pair):
        compared = _compare(tuple(values.items()), tuple(reference.by_query(pair).items()))
    return Cell(
        value=statistics.fmean(seeds),
        spread=statistics.stdev(seeds) if len(seeds) > 1 else 0.0,
        seeds=len(seeds),
        interval=_interval(tuple(values.values())),
        comparison=compared,
    )


def _adjusted(cells: Cells) -> Cells:
    places = [(name, pair) for name, row in cells.items() for pair, cell in row.items() if cell.comparison is not None]
    raw = [comparison.p for name, pair in places if (comparison := cells[name][pair].comparison) is not None]
    for (name, pair), p in zip(places, holm(raw) if raw else [], strict=True):
        cells[name][pair] = replace(cells[name][pair], adjusted_p=p)
    return cells


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """kept: the retrieval metric relative to the baseline. agreement: the accuracy on preferences."""

    kept: Pair
    agreement: Pair
    points: Sequence[Point]


def frontier(chosen: Sequence[System], pairs: Sequence[Pair], reference: System) -> Frontier | None:
    """The systems that have both an agreement and a retrieval metric; None for fewer than two.

    Agreement is the accuracy on a preference data set. Kept quality is the first nDCG relative to the baseline.
    """
    agreement = next((pair for pair in pairs if pair[1] == "accuracy" and reference.has(pair)), None)
    kept = next((pair for pair in pairs if pair[1].startswith("ndcg") and reference.has(pair)), None)
    if agreement is None or kept is None:
        return None
    base = statistics.fmean(reference.seeds(kept))
    both = [system for system in chosen if system.has(agreement) and system.has(kept)]
    if base == 0 or len(both) < 2:
        return None
    points = [_point(system, kept, agreement, base, reference) for system in both]
    return Frontier(kept=kept, agreement=agreement, points=points)


def _point(system: System, kept: Pair, agreement: Pair, base: float, reference: System) -> Point:
    xs, ys = [value / base for value in system.seeds(kept)], system.seeds(agreement)
    return Point(
        name=system.name,
        key=system.group.key,
        number=system.group.number,
        x=statistics.fmean(xs),
        y=statistics.fmean(ys),
        x_spread=statistics.stdev(xs) if len(xs) > 1 else 0.0,
        y_spread=statistics.stdev(ys) if len(ys) > 1 else 0.0,
        seeds=len(xs),
        role=_role(system, reference),
    )


def _role(system: System, reference: System) -> str:
    if system is reference:
        return "baseline"
    if system.model == ORACLE:
        return "oracle"
    trained = system.model != START
    return "plain" if trained and all(is_plain_rankpo(run) for run in system.group.runs) else ""
