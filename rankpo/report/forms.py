"""Indexes in a report: the size, quality and speed of their forms, as task=encode and task=search wrote them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankpo.report.groups import Group
from rankpo.report.runs import Run
from rankpo.report.stages import FOUND, near
from rankpo.retrieval.shards import META, read_meta, vector_bytes
from rankpo.storage.json_files import read_json

METRICS_A_TABLE = 3  # Columns that fit next to those of size and speed at a width of 1,280 pixels.
KEPT_ENOUGH = 0.98  # Fraction of a metric from which the summary calls it kept.


@dataclass(frozen=True, kw_only=True)
class Form:
    """The vectors of an index in one dtype. None: not measured.

    index: the name of its run. backend: of the search. megabytes: on disk. values: {DATASET/METRIC: value}. lost: the value
    of the index minus that of this form. speed: queries per second. same: the share of the hits of the index that it has.
    """

    index: str
    group: Group
    dtype: str
    documents: int
    backend: str = ""
    megabytes: float | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    lost: Mapping[str, float] = field(default_factory=dict)
    speed: float | None = None
    same: float | None = None


@dataclass(frozen=True, kw_only=True)
class FormTable:
    """Forms with the same metrics, the best by the first metric first, smaller ones first among equals."""

    metrics: Sequence[str]
    rows: Sequence[Form]


def form_tables(groups: Sequence[Group]) -> list[FormTable]:
    """The tables of all searches and indexes of the groups. Raises StorageError for a damaged file."""
    forms = [form for group in groups for run in group.runs for form in _forms(group, run)]
    tables = []
    for metrics in dict.fromkeys(tuple(form.values) for form in forms):
        rows = sorted((form for form in forms if tuple(form.values) == metrics), key=_order)
        for start in range(0, max(1, len(metrics)), METRICS_A_TABLE):
            tables.append(FormTable(metrics=metrics[start : start + METRICS_A_TABLE], rows=rows))
    return sorted(tables, key=lambda table: not table.metrics)


def form_sentences(tables: Sequence[FormTable]) -> list[str]:
    """For each index with several forms, the smallest form that keeps its first metric, one sentence each."""
    searched = dict.fromkeys(form.index for table in tables if table.metrics for form in table.rows if form.lost)
    return [line for index in searched if (line := _smallest(index, tables))]


def _smallest(index: str, tables: Sequence[FormTable]) -> str | None:
    table = next(table for table in tables if table.metrics and any(form.index == index for form in table.rows))
    metric = table.metrics[0]
    forms = [form for form in table.rows if form.index == index and form.megabytes is not None]
    whole = next((form for form in forms if not form.lost), None)
    if whole is None or whole.values[metric] <= 0:
        return None
    kept = [form for form in forms if form.values[metric] >= KEPT_ENOUGH * whole.values[metric]]
    best = min(kept, key=_megabytes)
    share = f"{100 * KEPT_ENOUGH:g} % of {metric}"
    if best is whole:
        return f"{index}: no smaller form than {whole.dtype} ({_megabytes(whole):.3g} MB) keeps {share}."
    return (
        f"{index}: the smallest form that keeps {share} is {best.dtype}, with {_megabytes(best):.3g} MB in place of "
        f"{_megabytes(whole):.3g} MB of {whole.dtype} ({best.values[metric]:.4f} in place of {whole.values[metric]:.4f})."
    )


def _megabytes(form: Form) -> float:
    return form.megabytes or 0.0


def _order(form: Form) -> tuple[float, float]:
    return -next(iter(form.values.values()), 0.0), _megabytes(form)


def _forms(group: Group, run: Run) -> Iterator[Form]:
    """The forms of a run's searches, and of its indexes that none of these searched."""
    found = [(path, read_json(path, "run task=search again")) for path in near(run.folder, FOUND)]
    several = len(found) > 1
    for path, values in found:
        yield from _of_search(f"{run.name}/{path.parent.name}" if several else run.name, group, values)
    searched = {Path(values["settings"]["index"]).resolve() for _, values in found}
    for path in near(run.folder, META):
        if path.parent.resolve() not in searched:
            yield from _of_index(run.name, group, path.parent)


def _of_search(name: str, group: Group, values: Mapping[str, Any]) -> Iterator[Form]:
    """One row for each form; the index alone if no forms were asked for."""
    shared = {"index": name, "group": group, "documents": values["documents"], "backend": values["backend"]}
    wanted = values["settings"]["metrics"]
    rows = values["forms"] or [{**values, "queries/s": values["queries"] / max(values["seconds"], 1e-9)}]
    measures = [key for key in rows[0] if "/" in key and key.rpartition("/")[2] in wanted]
    for row in rows:
        yield Form(
            dtype=row.get("dtype", "–"),
            megabytes=row.get("MB"),
            values={key: row[key] for key in measures},
            lost={key: row[f"{key} lost"] for key in measures if f"{key} lost" in row},
            speed=row["queries/s"],
            same=row.get("same hits"),
            **shared,
        )


def _of_index(name: str, group: Group, folder: Path) -> Iterator[Form]:
    saved = read_meta(folder)
    if saved is not None:
        encoding, complete = saved
        yield Form(
            index=name,
            group=group,
            dtype=encoding.dtype,
            documents=encoding.num_rows,
            backend="" if complete else "not complete",
            megabytes=vector_bytes(folder) / 1e6,
        )
