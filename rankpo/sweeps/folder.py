"""Folder of a sweep: one run directory per job, named by its varied overrides, with state and table."""

from __future__ import annotations

import csv
import json
import os
import statistics
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash
from omegaconf import DictConfig, OmegaConf

from rankpo.config.check import check, plain_tree
from rankpo.config.moved import comparable
from rankpo.errors import ConfigError
from rankpo.runs import origin
from rankpo.runs.folder import differences
from rankpo.runs.logger import MetricsLogger
from rankpo.storage.atomic import replacing
from rankpo.storage.json_files import read_json, write_json
from rankpo.storage.json_lines import read_lines
from rankpo.sweeps.names import (
    canonical,
    canonical_changes,
    earlier_job_name,
    hashed_job_name,
    job_name,
    key_of,
)

SWEEP_FILE = "sweep.json"
JOB_FILE = "sweep_job.json"
TABLE_FILE = "sweep.csv"
NO_METRICS = ("step", "time")
SMALLER_IS_BETTER = ("loss", "perplexity")

_folders: list[Path] = []  # Folders of the sweeps that this process runs.


def begin(config: DictConfig) -> None:
    """Writes the information that the jobs of a sweep and its table need, before the first job.

    Jobs can run in other processes, on other machines, and with other command lines, and share only the folder. config:
    the config without the swept overrides.
    """
    folder = Path(str(config.run_dir))
    keys = ("search.metric", "hydra.launcher.metric", "trainer.best_metric")
    metric = next((value for key in keys if (value := OmegaConf.select(config, key)) is not None), None)
    direction = OmegaConf.select(config, "search.direction")
    note = {
        "arguments": list(config.hydra.overrides.task),
        "metrics": [metric] if isinstance(metric, str) else list(metric or []),
        "directions": [direction] if isinstance(direction, str) else list(direction or []),
    }
    write_json(folder / SWEEP_FILE, note)
    _folders.append(folder)
    os.environ.setdefault("SLURM_KILL_BAD_EXIT", "1")  # srun then ends all tasks of a job if one fails.


def read_note(folder: Path) -> dict[str, Any]:
    """Reads the file of `begin`. Raises ConfigError for a job outside the sweep's folder."""
    path = folder / SWEEP_FILE
    if not path.exists():
        keys = "exp_name, runs_dir, cache_dir and run_dir"
        raise ConfigError([f"{path} is not there: {keys} name the folder of the sweep; none can be swept"])
    return read_json(path)


def job_folder(parent: Path, changes: Sequence[str]) -> Path:
    """Returns the folder of a job, or its folder of an earlier version if that exists."""
    folder, earlier = parent / job_name(changes), parent / earlier_job_name(changes)
    if _is_of_another(folder, changes):  # Earlier versions gave both jobs one name.
        return parent / hashed_job_name(changes)
    is_earlier = not folder.exists() and read_job(earlier) is not None and not _is_of_another(earlier, changes)
    return earlier if is_earlier else folder


def _is_of_another(folder: Path, changes: Sequence[str]) -> bool:
    """Whether the folder holds a job with other values."""
    noted = read_job(folder)
    if noted is None:
        return False
    return canonical_changes(noted["overrides"]) != canonical_changes(changes)


def config_hash(config: object) -> str:
    """The hash of all settings that affect a job's result: the config without the `hydra` node and output folders."""

    tree: Any = OmegaConf.to_container(config, resolve=False)
    left_out = ("hydra", "runs_dir", "run_dir", "overwrite", "resume", "allow_changes", "tracker", "search", "packages")
    kept = {key: value for key, value in tree.items() if key not in left_out}
    return xxhash.xxh3_128_hexdigest(json.dumps(kept, sort_keys=True).encode())


def write_job(folder: Path, values: Mapping[str, object]) -> None:
    """Writes a job's overrides, state (running, finished, pruned, failed), seconds and error."""
    write_json(folder / JOB_FILE, values)


def read_job(folder: Path) -> dict[str, Any] | None:
    path = folder / JOB_FILE
    return read_json(path) if path.exists() else None


def is_finished(folder: Path, digest: str, config: DictConfig, overrides: Sequence[str]) -> bool:
    """Whether the job of this config has finished in this folder, with this version or an earlier one.

    digest: `config_hash` of the config. overrides: the overrides of the config.
    """
    job = read_job(folder)
    if job is None or job["state"] != "finished":
        return False
    same = job["config"] == digest or _is_same_run(folder, config, overrides)
    return same and (not (folder / origin.FILE).exists() or not _changes(folder, config, overrides))


def _changes(folder: Path, config: DictConfig, overrides: Sequence[str]) -> list[str]:
    """The data or weights of a finished job that have changed. The job then runs again and raises an error with them."""
    from rankpo.config.origin import origin_of

    placed: Any = OmegaConf.merge(config, {"run_dir": str(folder)})
    experiment = check(placed, overrides)
    return [] if experiment.allow_changes else origin.changes(folder, origin_of(experiment))


def _is_same_run(folder: Path, config: DictConfig, overrides: Sequence[str]) -> bool:
    """Whether the run in this folder has this config. Only a training stores its config there."""

    saved = folder / "config.json"
    if not saved.exists():
        return False
    placed: Any = OmegaConf.merge(config, {"run_dir": str(folder)})
    old, new = comparable(read_json(saved)), comparable(plain_tree(placed, overrides))
    if new["trainer"]["precision"] == "auto":  # The device of the job settled it; the saved config names the result.
        new["trainer"]["precision"] = old["trainer"]["precision"]
    return old["task"]["_target_"] == new["task"]["_target_"] and not differences(old, new)


def results(folder: Path) -> list[dict[str, object]]:
    """One row for each job: what it varies, its state, and its value of every metric."""
    rows = []
    for path in sorted(folder.glob(f"*/{JOB_FILE}")):
        job = read_json(path)
        chosen = {key_of(item): canonical(item).partition("=")[2] for item in job["overrides"]}
        rows.append({"job": path.parent.name, "state": job["state"], **chosen, **last_metrics(path.parent)})
    return rows


def last_metrics(run_dir: Path) -> dict[str, float]:
    """The last value of each metric of a run, without the prefix `eval/`; the metrics of FINAL if it exists.

    They differ with trainer.final=best, which takes the weights of an earlier evaluation.
    """
    path = run_dir / "metrics.jsonl"
    values: dict[str, float] = {}
    for record in read_lines(path):
        values.update({name: value for name, value in record.items() if name not in NO_METRICS})
    kept = {name.removeprefix("eval/"): value for name, value in values.items() if value is not None}
    final = run_dir / "FINAL" / "rankpo.json"
    if final.exists():
        kept.update(read_json(final).get("metrics_after") or {})
    return kept


def find_metric(name: str, known: Collection[str]) -> str | None:
    """Resolves a metric name, with or without the dataset prefix, to a known name."""
    return next((item for item in sorted(known) if name in (item, item.partition("/")[2])), None)


def summary(
    rows: Sequence[Mapping[str, object]], metrics: str | Sequence[str] | None, descending: bool | None = None
) -> list[dict[str, object]]:
    """The table of jobs, sorted by the first metric, best first. Jobs that differ only in `seed` share a row.

    Such a row has the mean ± standard deviation. metrics: None takes train/loss. descending: None is false for losses and
    perplexities, else true. Unfinished jobs are last. Raises ValueError for a metric that no finished job has.
    """
    finished = [row for row in rows if row["state"] == "finished"]
    known = {key for row in finished for key, value in row.items() if isinstance(value, float)}
    wanted = (
        [metrics] if isinstance(metrics, str) else list(metrics or (["train/loss"] if "train/loss" in known else []))
    )
    names = []
    for name in wanted if finished else []:
        found = find_metric(name, known)
        if found is None:
            raise ValueError(
                f"trainer.best_metric, hydra.launcher.metric or search.metric: {name} is not among "
                f"{', '.join(sorted(known)) or 'the metrics of the jobs, which have none'}"
            )
        names.append(found)
    groups: dict[str, list[Mapping[str, object]]] = {}
    for row in finished:
        groups.setdefault(json.dumps(_chosen(row, "seed", "state"), sort_keys=True), []).append(row)
    table = [{**json.loads(key), "seeds": len(members), **_means(members, names)} for key, members in groups.items()]
    if names:
        down = names[0].rpartition("/")[2] not in SMALLER_IS_BETTER if descending is None else descending
        table.sort(key=lambda row: row.get(names[0], float("-inf" if down else "inf")), reverse=down)
    return [*table, *({**_chosen(row), "seeds": 0} for row in rows if row["state"] != "finished")]


def _chosen(row: Mapping[str, object], *others: str) -> dict[str, str]:
    """What a job varies (metrics are numbers), without its name and `others`."""
    return {key: value for key, value in row.items() if isinstance(value, str) and key not in ("job", *others)}


def _means(members: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, float]:
    """The mean of each metric over jobs, and its standard deviation as `±` of the first and `± name` of others."""
    found: dict[str, float] = {}
    for name in names:
        values = [float(member[name]) for member in members if name in member]
        if values:
            found[name] = statistics.fmean(values)
        if len(values) > 1:
            found["±" if name == names[0] else f"± {name}"] = statistics.stdev(values)
    return found


def table_of(folder: Path) -> list[dict[str, object]]:
    """The table of a finished or running sweep in this folder, by the metrics of the sweep."""
    note = read_note(folder)
    descending = note["directions"][0] == "maximize" if note["directions"] else None
    return summary(results(folder), note["metrics"], descending)


def write_table(folder: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """Writes all jobs with all metrics to `folder`/sweep.csv."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with replacing(folder / TABLE_FILE) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    return folder / TABLE_FILE


def close_all() -> None:
    """Writes the CSV and prints the table of the sweep that this process ran, if any."""

    for folder in _folders:
        rows = results(folder)
        if rows:
            path = write_table(folder, rows)
            MetricsLogger().table(table_of(folder), f"\n{len(rows)} jobs; all metrics in {path}")
    _folders.clear()
