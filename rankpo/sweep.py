"""A sweep's folder: one run directory for each job, named by what it varies; its state and its table."""

from __future__ import annotations

import csv
import json
import re
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rankpo.atomic import replace_text

JOB_FILE = "sweep_job.json"
TABLE_FILE = "sweep.csv"
MAX_NAME = 120  # characters; file systems allow 255


def varied(overrides: Sequence[str], arguments: Collection[str]) -> list[str]:
    """The overrides in which a job differs from its neighbours: those that the command line does not hold as they are."""
    return [override for override in overrides if override not in arguments]


def job_name(overrides: Sequence[str]) -> str:
    """A folder's name for a job. It depends on the job alone, so that a longer sweep keeps the finished jobs."""
    name = re.sub(r"[^\w.=,+-]+", "_", ",".join(overrides)) or "job"
    if len(name) <= MAX_NAME:
        return name
    import xxhash

    return f"{name[:MAX_NAME]}-{xxhash.xxh3_64_hexdigest(','.join(overrides).encode())[:8]}"


def config_hash(config: Any) -> str:
    """Of everything that a job's result depends on: the composed config without Hydra's own part and where it is put."""
    import xxhash

    tree: Any = OmegaConf.to_container(config, resolve=False)
    kept = {
        key: value for key, value in tree.items() if key not in ("hydra", "run_dir", "overwrite", "resume", "tracker")
    }
    return xxhash.xxh3_128_hexdigest(json.dumps(kept, sort_keys=True).encode())


def write_job(folder: Path, values: Mapping[str, Any]) -> None:
    """Notes a job's overrides, state (running, finished, failed), seconds and error."""
    replace_text(folder / JOB_FILE, json.dumps(values, indent=1))


def read_job(folder: Path) -> dict[str, Any] | None:
    path = folder / JOB_FILE
    return json.loads(path.read_text()) if path.exists() else None


def is_finished(folder: Path, digest: str) -> bool:
    """Whether this very job has run to its end here."""
    job = read_job(folder)
    return job is not None and job["state"] == "finished" and job["config"] == digest


def results(folder: Path) -> list[dict[str, Any]]:
    """One row for each job: what it varies, its state, and its last value of every metric."""
    rows = []
    for path in sorted(folder.glob(f"*/{JOB_FILE}")):
        job = json.loads(path.read_text())
        chosen = dict(item.lstrip("+").split("=", 1) for item in job["overrides"])
        rows.append({"job": path.parent.name, "state": job["state"], **chosen, **last_metrics(path.parent)})
    return rows


def last_metrics(run_dir: Path) -> dict[str, float]:
    """The last value of each metric of a run, evaluation metrics without their `eval/`."""
    path = run_dir / "metrics.jsonl"
    values: dict[str, float] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        values.update({name: value for name, value in json.loads(line).items() if name not in ("step", "time")})
    return {name.removeprefix("eval/"): value for name, value in values.items()}


def summary(rows: Sequence[Mapping[str, Any]], metric: str | None, descending: bool = True) -> list[dict[str, Any]]:
    """Jobs that differ in `seed` alone as one row (mean ± standard deviation), sorted by `metric`, best first.

    metric: None takes train/loss, smaller first. Raises ValueError for a metric that no finished job has.
    """
    finished = [row for row in rows if row["state"] == "finished"]
    name = metric or "train/loss"
    known = sorted({key for row in finished for key, value in row.items() if isinstance(value, float)})
    if finished and name not in known:
        raise ValueError(
            f"trainer.best_metric or hydra.launcher.metric={name} is not among the metrics of the jobs: {', '.join(known)}"
        )
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in finished:
        chosen = {k: v for k, v in row.items() if isinstance(v, str) and k not in ("job", "seed", "state")}
        groups.setdefault(json.dumps(chosen, sort_keys=True), []).append(row)
    table = []
    for key, members in groups.items():
        values = [float(member[name]) for member in members if name in member]
        mean = statistics.fmean(values)
        row = {**json.loads(key), "seeds": len(members), name: mean}
        if len(values) > 1:
            row["±"] = statistics.stdev(values)
        table.append(row)
    table.sort(key=lambda row: row[name], reverse=descending if metric else False)
    failed = [row for row in rows if row["state"] != "finished"]
    return [*table, *({**{k: v for k, v in row.items() if k != "job"}, "seeds": 0} for row in failed)]


def write_table(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """All jobs with all metrics as `folder`/sweep.csv."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with (folder / TABLE_FILE).open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    return folder / TABLE_FILE


_folders: dict[Path, str | None] = {}  # of the sweep that runs in this process, with the metric of its table


def in_sweep(config: DictConfig, overrides: Sequence[str], arguments: Sequence[str], run: Callable[..., None]) -> None:
    """Runs one job of a sweep in this process, unless it is finished; its folder is named by what it varies.

    Raises what the job raises; the sweep goes on with its other jobs.
    """
    from rankpo.build import check
    from rankpo.metrics import MetricsLogger

    changes = varied(overrides, arguments)
    digest = config_hash(config)
    parent = Path(str(config.run_dir))
    folder = parent / job_name(changes)
    OmegaConf.update(config, "run_dir", str(folder))
    _folders[parent] = OmegaConf.select(config, "trainer.best_metric")
    if is_finished(folder, digest):
        MetricsLogger().say(f"{folder.name}: finished before")
        return
    noted = {"overrides": changes, "config": digest}
    MetricsLogger().say(f"\n{folder.name}")
    write_job(folder, {**noted, "state": "failed", "error": "ended before it was finished"})
    try:
        run(check(config, overrides=overrides))
    except Exception as error:
        write_job(folder, {**noted, "state": "failed", "error": str(error)})
        raise
    write_job(folder, {**noted, "state": "finished"})


def close_all() -> None:
    """Shows the table of the sweep that ran in this process, if there was one."""
    from rankpo.metrics import MetricsLogger

    for folder, metric in _folders.items():
        close(folder, metric, MetricsLogger().table)


def close(folder: Path, metric: str | None, say_table: Any) -> None:
    """The end of a sweep: its CSV, and its table through `say_table(rows, title)`."""
    rows = results(folder)
    if not rows:
        return
    path = write_table(folder, rows)
    say_table(summary(rows, metric), f"\n{len(rows)} jobs; all metrics in {path}")
