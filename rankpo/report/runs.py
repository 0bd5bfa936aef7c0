"""What a report reads of runs: their metrics by step, their config, their evaluations by query."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankpo.errors import ConfigError
from rankpo.report.stages import has_stages
from rankpo.sweeps.folder import JOB_FILE, SWEEP_FILE

PER_QUERY = "per_query.jsonl"


@dataclass(frozen=True)
class Evaluation:
    """One model on one data set. metrics: means; items: {id: {metric: value}}."""

    model: str
    dataset: str
    metrics: Mapping[str, float]
    items: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Run:
    """A run directory. steps: the lines of metrics.jsonl; a folder of task=evaluate alone has none."""

    name: str
    folder: Path
    steps: Sequence[Mapping[str, float]]
    config: Mapping[str, Any]
    evaluations: Sequence[Evaluation]

    def curve(self, metric: str) -> list[tuple[float, float]]:
        """(step, value) of a metric."""
        return [(line["step"], line[metric]) for line in self.steps if isinstance(line.get(metric), int | float)]

    def metrics(self, prefix: str) -> list[str]:
        """Names of the logged metrics that begin so."""
        return sorted({name for line in self.steps for name in line if name.startswith(prefix)})


def open_runs(paths: Sequence[str]) -> list[Run]:
    """The runs of the given directories; a sweep's directory stands for all its jobs.

    Raises ConfigError naming a path that is neither.
    """
    folders: list[Path] = []
    for path in paths:
        folder = Path(path)
        jobs = sorted(job.parent for job in folder.glob(f"*/{JOB_FILE}"))
        if jobs:
            folders += jobs
        elif (folder / "metrics.jsonl").exists() or list(folder.glob(f"**/{PER_QUERY}")) or has_stages(folder):
            folders.append(folder)
        else:
            raise ConfigError(
                [f"task.runs: {path} holds no metrics.jsonl, no evaluation, no sweep, and nothing mined or judged"]
            )
    names = short_names(folders)
    return [_open(name, folder) for name, folder in zip(names, folders, strict=True)]


def sweeps_among(paths: Sequence[str]) -> list[Path]:
    """Those of the directories that are a sweep's."""
    return [Path(path) for path in paths if (Path(path) / SWEEP_FILE).exists()]


def short_names(folders: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart."""
    for depth in range(1, max((len(folder.parts) for folder in folders), default=1) + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _open(name: str, folder: Path) -> Run:
    lines = folder / "metrics.jsonl"
    steps = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    config = folder / "config.json"
    evaluations = [_evaluation(path) for path in sorted(folder.glob(f"**/{PER_QUERY}"))]
    return Run(name, folder, steps, json.loads(config.read_text()) if config.exists() else {}, evaluations)


def _evaluation(path: Path) -> Evaluation:
    folder = path.parent
    items: dict[str, dict[str, float]] = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        items[str(record.pop("query"))] = record
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    kept = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    return Evaluation(folder.parent.name, folder.name, kept, items)


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A config as {dotted key: value}."""
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found.update(flat(value, f"{prefix}.{name}" if prefix else str(name)))
    return found


def config_differences(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Rows of config keys in which the runs differ; runs without a config are left out."""
    runs = [run for run in runs if run.config]
    configs = [flat(run.config) for run in runs]
    keys = sorted({key for config in configs for key in config})
    rows = []
    for key in keys:
        values = [config.get(key, "—") for config in configs]
        if len({json.dumps(value, sort_keys=True, default=str) for value in values}) > 1:
            rows.append({"key": key, **{run.name: value for run, value in zip(runs, values, strict=True)}})
    return rows
