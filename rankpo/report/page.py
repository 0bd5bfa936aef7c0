"""report.html: one file, no network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rankpo.report import charts, contents
from rankpo.report.runs import Run, config_differences
from rankpo.report.stages import judged_of, mined_of
from rankpo.sweeps.folder import table_of

TEMPLATE = Path(__file__).parent / "page.html"
CURVES = ("train/loss", "train/rewards/accuracies", "train/scores/accuracies", "train/grad_norm", "train/learning_rate")
MAX_EVAL_CURVES = 12


def render(
    runs: Sequence[Run],
    title: str,
    metrics: Sequence[str],
    baseline: str | None,
    texts: Mapping[str, str],
    sweeps: Sequence[Path] = (),
) -> str:
    """The page of these runs, with the tables of the sweeps that they are jobs of.

    Raises ValueError for a baseline that was not evaluated.
    """
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = number
    template = environment.from_string(TEMPLATE.read_text())
    chosen = contents.systems(runs)
    compared = _compared(chosen, metrics, baseline, texts) if chosen else {}
    return template.render(
        title=title,
        runs=runs,
        sweeps=[_sweep(folder) for folder in sweeps],
        curves=_curves(runs),
        legend=charts.legend([run.name for run in runs if run.steps]),
        changes=[_changes(run) for run in runs if run.metrics("eval/")],
        mined=[part for run in runs for part in mined_of(run.name, run.folder)],
        judged=[part for run in runs for part in judged_of(run.name, run.folder)],
        configured=[run for run in runs if run.config],
        differences=config_differences(runs) if len(runs) > 1 else [],
        config=json.dumps(runs[0].config, indent=1, sort_keys=True) if len(runs) == 1 and runs[0].config else "",
        **compared,
    )


def _sweep(folder: Path) -> dict[str, Any]:
    """The table of a sweep, and the names of its columns."""
    rows = table_of(folder)
    return {"name": folder, "rows": rows, "names": list(dict.fromkeys(name for row in rows for name in row))}


def number(value: Any) -> str:
    """A number as it is read: four decimals, or three digits for the very large and small."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return str(value)
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e3 or value == 0 else f"{value:.3g}"


def _curves(runs: Sequence[Run]) -> list[dict[str, str]]:
    logged = [name for name in CURVES if any(run.curve(name) for run in runs)]
    logged += sorted({name for run in runs for name in run.metrics("eval/")})[:MAX_EVAL_CURVES]
    found = []
    for name in logged:
        series = {run.name: run.curve(name) for run in runs if run.steps}
        short = name.removeprefix("train/").removeprefix("eval/")
        found.append({"name": short, "svg": charts.lines(series, "update", short)})
    return found


def _changes(run: Run) -> dict[str, Any]:
    """A run's first and last evaluation."""
    rows = []
    for name in run.metrics("eval/"):
        curve = run.curve(name)
        rows.append({"metric": name.removeprefix("eval/"), "before": curve[0][1], "after": curve[-1][1]})
    return {"run": run.name, "rows": rows}


def _compared(
    chosen: Sequence[contents.System], metrics: Sequence[str], baseline: str | None, texts: Mapping[str, str]
) -> dict[str, Any]:
    base = baseline or chosen[0].name
    pairs = contents.comparable_metrics(chosen, metrics)
    if not pairs:
        return {}
    cells = contents.table(chosen, pairs, base)
    found = contents.frontier(cells, base)
    frontier = None
    if found is not None and len(chosen) > 1:
        kept, alignment, points = found
        series = {name: [point] for name, point in points.items()}
        x_label, y_label = f"share of {kept[1]} on {kept[0]} kept", f"agreement on {alignment[0]}"
        frontier = {
            "svg": charts.scatter(series, x_label, y_label),
            "points": points,
            "legend": charts.legend(list(series)),
        }
    reference = next(system for system in chosen if system.name == base)
    changes = [
        {"system": system.name, "pair": pair, **contents.extremes(system, reference, pair, texts)}
        for system in chosen
        if system is not reference
        for pair in ([pair for pair in pairs if pair[1] != "accuracy"] or pairs)[:1]  # queries with a text of their own
    ]
    count = sum(cell.comparison is not None for row in cells.values() for cell in row.values())
    return {
        "cells": cells,
        "pairs": pairs,
        "baseline": base,
        "comparisons": count,
        "frontier": frontier,
        "extremes": changes,
    }
