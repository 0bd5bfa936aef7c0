"""The numbers of a report: deltas with tests, the frontier of alignment and retention, wins and losses by query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rankpo.evaluation.significance import Comparison, compare, grouped, holm, interval
from rankpo.report.runs import Evaluation, Run

EXTREMES = 5  # wins and losses shown with their texts


@dataclass(frozen=True)
class System:
    """A model that was evaluated: the run's name, with the model's where a run has several."""

    name: str
    evaluations: Mapping[str, Evaluation]


@dataclass(frozen=True)
class Cell:
    """One metric of one system, with its interval, and its comparison with the baseline."""

    value: float
    interval: tuple[float, float]
    comparison: Comparison | None
    adjusted_p: float | None = None


def systems(runs: Sequence[Run]) -> list[System]:
    """Every evaluated model of the runs, in their order."""
    found: dict[str, dict[str, Evaluation]] = {}
    for run in runs:
        models = list(dict.fromkeys(item.model for item in run.evaluations))
        for item in run.evaluations:
            name = run.name if len(models) == 1 else f"{run.name}: {item.model}"
            found.setdefault(name, {})[item.dataset] = item
    return [System(name, evaluations) for name, evaluations in found.items()]


def comparable_metrics(chosen: Sequence[System], wanted: Sequence[str]) -> list[tuple[str, str]]:
    """(dataset, metric) pairs with values by query in every system; `wanted` limits the metrics, if it is not empty."""
    first = chosen[0].evaluations
    pairs = [
        (dataset, name)
        for dataset, evaluation in first.items()
        for name in next(iter(evaluation.items.values()), {})
        if name != "group" and (not wanted or name in wanted)
    ]
    return [
        (dataset, name)
        for dataset, name in pairs
        if all(
            dataset in system.evaluations and any(name in item for item in system.evaluations[dataset].items.values())
            for system in chosen
        )
    ]


def table(
    chosen: Sequence[System], pairs: Sequence[tuple[str, str]], baseline: str
) -> dict[str, dict[tuple[str, str], Cell]]:
    """{system: {(dataset, metric): cell}}; p-values adjusted by Holm over all comparisons printed.

    Raises ValueError where the baseline is not among the systems.
    """
    names = [system.name for system in chosen]
    if baseline not in names:
        raise ValueError(f"task.baseline={baseline} is not among the evaluated models: {', '.join(names)}")
    reference = chosen[names.index(baseline)]
    cells: dict[str, dict[tuple[str, str], Cell]] = {}
    for system in chosen:
        cells[system.name] = {}
        for pair in pairs:
            values = _values(system, pair)
            comparison = None if system is reference else compare(values, _values(reference, pair))
            mean = sum(values.values()) / len(values)
            cells[system.name][pair] = Cell(mean, interval(list(values.values())), comparison)
    return _adjusted(cells)


def _values(system: System, pair: tuple[str, str]) -> dict[str, float]:
    return grouped(system.evaluations[pair[0]].items, pair[1])


def _adjusted(cells: dict[str, dict[tuple[str, str], Cell]]) -> dict[str, dict[tuple[str, str], Cell]]:
    places = [(name, pair) for name, row in cells.items() for pair, cell in row.items() if cell.comparison is not None]
    raw = [comparison.p for name, pair in places if (comparison := cells[name][pair].comparison) is not None]
    for (name, pair), p in zip(places, holm(raw) if raw else [], strict=True):
        cell = cells[name][pair]
        cells[name][pair] = Cell(cell.value, cell.interval, cell.comparison, p)
    return cells


def frontier(
    cells: Mapping[str, Mapping[tuple[str, str], Cell]], baseline: str
) -> tuple[tuple[str, str], tuple[str, str], dict[str, tuple[float, float]]] | None:
    """(retention's metric, alignment's metric, {system: (share of the baseline kept, agreement)}), or None.

    Alignment is a preference data set's accuracy; retention the first nDCG of another data set, over the baseline's.
    """
    pairs = list(cells[baseline])
    alignment = next((pair for pair in pairs if pair[1] == "accuracy"), None)
    kept = next((pair for pair in pairs if pair[1].startswith("ndcg")), None)
    if alignment is None or kept is None or cells[baseline][kept].value == 0:
        return None
    base = cells[baseline][kept].value
    return kept, alignment, {name: (row[kept].value / base, row[alignment].value) for name, row in cells.items()}


def extremes(
    system: System, reference: System, pair: tuple[str, str], texts: Mapping[str, str]
) -> dict[str, list[dict[str, Any]]]:
    """The queries that gained and lost most, with their texts where they are known."""
    new, old = _values(system, pair), _values(reference, pair)
    differences = sorted(((new[query] - old[query], query) for query in old if query in new), reverse=True)

    def rows(found: Sequence[tuple[float, str]]) -> list[dict[str, Any]]:
        return [
            {"query": query, "text": texts.get(query, ""), "old": old[query], "new": new[query]} for _, query in found
        ]

    wins = [item for item in differences[:EXTREMES] if item[0] > 0]
    losses = [item for item in reversed(differences[-EXTREMES:]) if item[0] < 0]
    return {"wins": rows(wins), "losses": rows(losses)}
