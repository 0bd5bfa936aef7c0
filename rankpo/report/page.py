"""HTML page of a report: one file that includes its style sheet and script and loads no network resource."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, Environment
from markupsafe import Markup

from rankpo.data.dataset import Dataset
from rankpo.report import contents, frontier, palette
from rankpo.report.curves import Change, changes, curves, status
from rankpo.report.forms import form_sentences, form_tables
from rankpo.report.groups import Group, group_runs
from rankpo.report.material import Library
from rankpo.report.queries import browser
from rankpo.report.runs import Run
from rankpo.report.searched import searched
from rankpo.report.stages import judged_of, mined_of
from rankpo.report.summary import sentences
from rankpo.sweeps.folder import table_of

HERE = Path(__file__).parent
CHARTS_AT_ONCE = 6  # A button shows the others.
METRICS_A_TABLE = 5  # Columns that fit next to the model's name at a width of 1,280 pixels.


@dataclass(frozen=True, kw_only=True)
class Content:
    """The inputs of a report. metrics: the shown metrics of evaluations, all if empty. baseline: None: the start model.

    labels: titles of runs, instead of their folders' names. datasets: sources of query and document texts, besides the
    data sets in the outputs of task=evaluate. sweeps: folders whose tables are shown.
    """

    title: str
    runs: Sequence[Run]
    metrics: Sequence[str] = ()
    baseline: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    datasets: Sequence[Dataset] = ()
    sweeps: Sequence[Path] = ()


def render(content: Content) -> str:
    """Returns the whole page. Raises ValueError for a baseline or label of an unknown run."""
    return render_shell(content.title, render_main(content))


def render_shell(title: str, main: str, *, live: float | None = None, search: Sequence[str] = ()) -> str:
    """Returns the page around its content. live: seconds between requests to the server. search: names of the models
    of the search box. A static file has neither and loads nothing."""
    script = (HERE / "page.js").read_text(encoding="utf-8")
    return (
        _environment()
        .get_template("page")
        .render(
            title=title,
            style=Markup(f":root {{ {palette.css_variables()} }}\n{(HERE / 'page.css').read_text(encoding='utf-8')}"),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            main=Markup(main),
            connect="'none'" if live is None else "'self'",
            live=live,
            search=search,
        )
    )


def render_main(content: Content) -> str:
    """Returns the part of the page that depends on the runs, which rankpo serve updates."""
    groups = group_runs(content.runs, content.labels)
    forms = form_tables(groups)
    return (
        _environment()
        .get_template("main")
        .render(
            title=content.title,
            groups=groups,
            several=len(groups) > 1,
            status=status,
            searched=searched(groups),
            forms=forms,
            form_lines=form_sentences(forms),
            sweeps=[_sweep(folder) for folder in content.sweeps],
            curves=curves(groups),
            charts_at_once=CHARTS_AT_ONCE,
            trained=[group for group in groups if any(run.steps for run in group.runs)],
            changes=_change_tables(changes(groups)),
            mined=[part for run in content.runs for part in mined_of(run.name, run.folder)],
            judged=[part for run in content.runs for part in judged_of(run.name, run.folder)],
            config=_only_config(content.runs),
            **_compared(content, groups),
        )
    )


def _environment() -> Environment:

    files = {"page": "page.html", "main": "main.html"}
    sources = {name: (HERE / file).read_text(encoding="utf-8") for name, file in files.items()}
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=DictLoader(sources))
    environment.filters.update(number=number, colour=palette.colour, data=as_data, short=short)
    return environment


def as_data(value: object) -> Markup:
    """Returns JSON for a script element, escaped so that it cannot end the element or begin another."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def number(value: object) -> str:
    """Formats a number with four decimals, or with three digits if it is very large or small."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return str(value)
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e3 or value == 0 else f"{value:.3g}"


def short(value: object) -> str:
    """Shortens a config value, a path to its last two parts."""
    text = json.dumps(value, default=str) if not isinstance(value, str) else value
    return "/".join(["…", *text.split("/")[-2:]]) if text.count("/") > 2 else text


def _sweep(folder: Path) -> dict[str, object]:
    """The table of a sweep, and the names of its columns."""
    rows = table_of(folder)
    return {"name": folder, "rows": rows, "names": list(dict.fromkeys(name for row in rows for name in row))}


def _change_tables(found: Sequence[Change]) -> list[dict[str, object]]:
    """Returns tables with at most METRICS_A_TABLE metrics each."""
    names = list(dict.fromkeys(name for change in found for name in change.values))
    starts = range(0, len(names), METRICS_A_TABLE)
    return [{"metrics": names[start : start + METRICS_A_TABLE], "rows": found} for start in starts]


def _only_config(runs: Sequence[Run]) -> str:
    return json.dumps(runs[0].config, indent=1, sort_keys=True) if len(runs) == 1 and runs[0].config else ""


def _compared(content: Content, groups: Sequence[Group]) -> dict[str, object]:
    """Returns the parts of the page on evaluations; only the summary without evaluations."""
    chosen = contents.systems(groups)
    pairs = contents.measured(chosen, content.metrics)
    if not pairs:
        return {"summary": sentences(groups, (), {}, None, None), "tables": [], "frontier": None, "queries": []}
    reference = contents.find_baseline(chosen, content.baseline, content.runs)
    cells = contents.table(chosen, pairs, reference)
    found = contents.frontier(chosen, pairs, reference)
    evaluations = [item for run in content.runs for item in run.evaluations]
    library = Library(content.datasets, evaluations)
    return {
        "summary": sentences(groups, pairs, cells, reference, found),
        "tables": _tables(chosen, pairs, cells),
        "baseline": reference.name,
        "comparisons": sum(cell.comparison is not None for row in cells.values() for cell in row.values()),
        "frontier": _frontier(found, groups),
        "queries": browser(chosen, pairs, reference, library),
        "notes": library.notes,
    }


def _tables(
    chosen: Sequence[contents.System], pairs: Sequence[contents.Pair], cells: contents.Cells
) -> list[dict[str, Any]]:
    """Returns one table for each data set, or several if it has more metrics than a table can show."""
    found = []
    for dataset in dict.fromkeys(dataset for dataset, _ in pairs):
        of_dataset = [pair for pair in pairs if pair[0] == dataset]
        for start in range(0, len(of_dataset), METRICS_A_TABLE):
            part = of_dataset[start : start + METRICS_A_TABLE]
            rows = [(system, [cells[system.name].get(pair) for pair in part]) for system in chosen]
            rows = [(system, row) for system, row in rows if any(row)]
            found.append({"dataset": dataset, "metrics": [metric for _, metric in part], "rows": rows})
    return found


def _frontier(found: contents.Frontier | None, groups: Sequence[Group]) -> dict[str, object] | None:
    if found is None:
        return None
    kept = f"share of the baseline's {found.kept[1]} on {found.kept[0]} that is kept"
    agreement = f"agreement with the preferences of {found.agreement[0]}"
    best = {point.name for point in frontier.pareto(found.points)}
    shown = {point.key for point in found.points}
    return {
        "svg": frontier.chart(found.points, kept, agreement),
        "points": found.points,
        "best": best,
        "groups": [group for group in groups if group.key in shown],
    }
