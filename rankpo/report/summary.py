"""Summary sentences of a report: the compared models, the best ones, and the cost of alignment."""

from __future__ import annotations

from collections.abc import Sequence

from rankpo.report.contents import Cell, Cells, Frontier, Pair, System
from rankpo.report.frontier import Point
from rankpo.report.groups import Group
from rankpo.report.runs import Run

KEPT_ENOUGH = 0.98  # Fraction of the baseline's quality from which it counts as kept.
SIGNIFICANT = 0.05


def sentences(
    groups: Sequence[Group], pairs: Sequence[Pair], cells: Cells, reference: System | None, found: Frontier | None
) -> list[str]:
    """The summary, one sentence an entry."""
    lines = [_scope(groups, reference)]
    if reference is not None:
        lines += [line for pair in _headline_pairs(pairs) if (line := _best(pair, cells, reference))]
    if found is not None:
        lines += _trade(found)
    lines += [_unfinished(run) for group in groups for run in group.runs if run.steps and not run.record]
    return lines


def _scope(groups: Sequence[Group], reference: System | None) -> str:
    runs = sum(len(group.runs) for group in groups)
    counted = f"{runs} run" if runs == 1 else f"{runs} runs"
    recipes = "" if len(groups) == runs else f" of {len(groups)} recipes; runs of one recipe differ in their seed alone"
    baseline = "" if reference is None or len(groups) < 2 else f" Differences are measured from {reference.name}."
    return f"{counted}{recipes}.{baseline}"


def _headline_pairs(pairs: Sequence[Pair]) -> list[Pair]:
    """The first metric of each data set."""
    first: dict[str, Pair] = {}
    for pair in pairs:
        first.setdefault(pair[0], pair)
    return list(first.values())


def _best(pair: Pair, cells: Cells, reference: System) -> str | None:
    """Which model is best by a metric, and whether it differs from the baseline; None for a single model."""
    values = {name: row[pair] for name, row in cells.items() if pair in row}
    if len(values) < 2:
        return None
    name = max(values, key=lambda name: values[name].value)
    cell = values[name]
    what = f"{pair[1]} on {pair[0]}"
    if name == reference.name:
        return f"Highest {what}: the baseline, {name}, with {cell.value:.4f}."
    return f"Highest {what}: {name} with {cell.value:.4f}{_against(cell)}."


def _against(cell: Cell) -> str:
    if cell.comparison is None or cell.adjusted_p is None:
        return ""
    sure = "a significant difference" if cell.adjusted_p < SIGNIFICANT else "not a significant difference"
    return f", {cell.comparison.difference:+.4f} from the baseline ({sure}, p = {cell.adjusted_p:.2g})"


def _trade(found: Frontier) -> list[str]:
    """The model that agrees most, and the one that agrees most among those that keep the baseline's quality."""
    recipes = [point for point in found.points if point.role != "oracle"]
    base = next((point for point in recipes if point.role == "baseline"), None)
    most = max(recipes, key=lambda point: point.y)
    kept = f"the baseline's {found.kept[1]}"
    lines = [f"{most.name} agrees most with the preferences ({most.y:.4f}) and keeps {_percent(most.x)} of {kept}."]
    enough = [point for point in recipes if point.x >= KEPT_ENOUGH and point is not base]
    if enough and base is not None and most not in enough:
        lines.append(_kept_best(max(enough, key=lambda point: point.y), base))
    elif not enough:
        lines.append(f"No other model keeps {_percent(KEPT_ENOUGH)} of {kept}.")
    return lines


def _kept_best(best: Point, base: Point) -> str:
    return (
        f"Of the models that keep at least {_percent(KEPT_ENOUGH)}, {best.name} agrees most: {best.y:.4f}, "
        f"{best.y - base.y:+.4f} from the baseline."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %".replace(".0 %", " %")


def _unfinished(run: Run) -> str:
    return f"{run.name} is not finished: {int(run.steps[-1]['step'])} updates so far."
