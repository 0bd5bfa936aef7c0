"""Runs of a report: their metrics by step, configs, and evaluations by query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankpo.errors import ConfigError
from rankpo.report.stages import has_indexes, has_search, has_stages
from rankpo.storage.json_files import read_json
from rankpo.storage.json_lines import read_lines
from rankpo.sweeps.folder import JOB_FILE, SWEEP_FILE

PER_QUERY = "per_query.jsonl"
RANKING = "run.trec"
RECORD = Path("FINAL") / "rankpo.json"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One model on one data set.

    metrics: means; items: {id: {metric: value}}. ranking: the file of ranked documents, or None.
    source: the config node of the data set in the output of task=evaluate, if any.
    """

    model: str
    dataset: str
    metrics: Mapping[str, float]
    items: Mapping[str, Mapping[str, float]]
    ranking: Path | None = None
    source: Mapping[str, object] | None = None


@dataclass(frozen=True)
class Run:
    """A run directory. steps: the lines of metrics.jsonl; a folder with only task=evaluate has none.

    record: the description in FINAL, {} without FINAL.
    """

    name: str
    folder: Path
    steps: Sequence[Mapping[str, float]]
    config: Mapping[str, Any]
    evaluations: Sequence[Evaluation]
    record: Mapping[str, object] = field(default_factory=dict)

    def curve(self, metric: str) -> list[tuple[float, float]]:
        """(step, value) of a metric."""
        return [(line["step"], line[metric]) for line in self.steps if isinstance(line.get(metric), int | float)]

    def metrics(self, prefix: str) -> list[str]:
        """Returns the names of logged metrics with this prefix."""
        return sorted({name for line in self.steps for name in line if name.startswith(prefix)})


def open_runs(paths: Sequence[str]) -> list[Run]:
    """Returns the runs of the given directories; a sweep's directory gives all its jobs.

    Raises ConfigError with the path for other directories.
    """
    folders: list[Path] = []
    for path in paths:
        folder = Path(path)
        jobs = sorted(job.parent for job in folder.glob(f"*/{JOB_FILE}"))
        if jobs:
            folders += jobs
        elif (
            (folder / "metrics.jsonl").exists()
            or list(folder.glob(f"**/{PER_QUERY}"))
            or has_stages(folder)
            or has_search(folder)
            or has_indexes(folder)
        ):
            folders.append(folder)
        else:
            raise ConfigError(
                [
                    f"task.runs: {path} holds no metrics.jsonl, no evaluation, no sweep, no frontier, no index and no search, "
                    "and nothing mined or judged"
                ]
            )
    names = short_names(folders)
    return [_open(name, folder) for name, folder in zip(names, folders, strict=True)]


def sweeps_among(paths: Sequence[str]) -> list[Path]:
    """Returns the directories of sweeps."""
    return [Path(path) for path in paths if (Path(path) / SWEEP_FILE).exists()]


def short_names(folders: Sequence[Path]) -> list[str]:
    """Returns the shortest distinct suffixes of the paths."""
    for depth in range(1, max((len(folder.parts) for folder in folders), default=1) + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _open(name: str, folder: Path) -> Run:
    steps = read_lines(folder / "metrics.jsonl", needed=("step",))
    evaluations = [_evaluation(path) for path in sorted(folder.glob(f"**/{PER_QUERY}"))]
    return Run(name, folder, steps, _json(folder / "config.json"), evaluations, _json(folder / RECORD))


def _json(path: Path) -> dict[str, Any]:
    return read_json(path, "remove it, or leave this run out of task.runs") if path.exists() else {}


def _evaluation(path: Path) -> Evaluation:
    folder = path.parent
    items: dict[str, dict[str, float]] = {}
    for record in read_lines(path, needed=("query",)):
        items[str(record.pop("query"))] = record
    summary = _json(folder / "metrics.json")
    kept = {name: value for name, value in summary["metrics"].items() if isinstance(value, int | float)}
    ranking = folder / RANKING
    return Evaluation(
        model=folder.parent.name,
        dataset=folder.name,
        metrics=kept,
        items=items,
        ranking=ranking if ranking.exists() else None,
        source=summary.get("dataset"),
    )


def flat(tree: object, prefix: str = "") -> dict[str, object]:
    """A config as {dotted key: value}."""
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    found: dict[str, object] = {}
    for name, value in tree.items():
        found.update(flat(value, f"{prefix}.{name}" if prefix else str(name)))
    return found
