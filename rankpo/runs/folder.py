"""Folder of a run: its lock, and the checks before a run starts or continues there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rankpo.errors import StorageError
from rankpo.storage import locks
from rankpo.storage.folders import MANIFEST, recover, remove_written
from rankpo.storage.json_files import read_json, write_json

Comparable = Callable[[Mapping[str, object]], Mapping[str, object]]

CONFIG = "config.json"
TRACKER_ID = "tracker_id"
TRACKER_RUNS = "tracker_runs.json"  # The run's names in trackers.
RUN_FILES = (  # A run writes these files beside its checkpoints and FINAL.
    "metrics.jsonl",
    "origin.json",
    "data_report.json",
    TRACKER_ID,
    TRACKER_RUNS,
    "tensorboard/**/events.out.tfevents.*",
    "evaluation/*/*/metrics.json",
    "evaluation/*/*/per_query.jsonl",
    "evaluation/*/*/run.trec",
)
# These keys may differ between the start of a run and its continuation.
FREE_KEYS = (
    "overwrite",
    "resume",
    "allow_changes",
    "runs_dir",  # run_dir follows from it.
    "tracker",
    "task",
    "trainer.log_every",
    "trainer.timeout_minutes",
    "trainer.max_tokens",
)


@contextmanager
def claim(run_dir: Path) -> Iterator[None]:
    """Locks the run directory; raises StorageError with the holder's name if another process holds it."""
    lock = run_dir / ".lock"
    with ExitStack() as stack:
        try:
            stack.enter_context(locks.named(lock))
        except locks.Busy:
            raise StorageError(f"{run_dir} is in use by {locks.holder(lock)}; choose another exp_name") from None
        yield


def enter_run_dir(
    run_dir: Path,
    config: Mapping[str, object],
    overwrite: bool,
    resume: str | None,
    comparable: Comparable = lambda tree: tree,
) -> bool:
    """Prepares the directory; returns whether work remains. Raises StorageError with the key to set.

    A finished run (with FINAL) is overwritten with overwrite=true only. An unfinished run continues with resume=auto if
    its config is equal except for keys that cannot change the result. With resume=auto, the result is False for a
    finished run with the same config.

    comparable: converts the saved config and this one to a form for comparison, see `config.moved.comparable`.
    """
    saved_path = run_dir / CONFIG
    recover(run_dir / "FINAL")
    finished = (run_dir / "FINAL").exists()
    # A run that stopped before its first log line, such as at a bad record, has no results to continue or protect.
    begun = saved_path.exists() and any((run_dir / name).exists() for name in ("checkpoints", "metrics.jsonl"))
    if overwrite and (begun or finished):
        prove(run_dir)
        return True  # `start_again` removes the old files once the new run can begin, so that bad data loses nothing.
    if not (begun or finished):
        write_json(saved_path, config)
        return True
    if finished and resume != "auto":
        raise StorageError(f"{run_dir} holds a finished run; set overwrite=true or another exp_name")
    if resume != "auto":
        raise StorageError(f"{run_dir} holds an unfinished run; set resume=auto to continue it, or overwrite=true")
    different = differences(comparable(read_json(saved_path)), comparable(config))
    if different:
        raise StorageError(f"{run_dir} was started with another config: {'; '.join(different)}; set overwrite=true")
    return not finished


def start_again(run_dir: Path, config: Mapping[str, object]) -> None:
    """Removes the files of an earlier run of this name (overwrite=true) and writes the new run's config.

    Other files are kept. Raises StorageError for a folder without a run.
    """
    prove(run_dir)
    whole = [run_dir / "FINAL", *(run_dir / "checkpoints").glob("step-*")]
    for folder in whole:
        remove_written(folder)
    for pattern in RUN_FILES:
        for path in run_dir.glob(pattern):
            path.unlink()
    for name in ("evaluation", "tensorboard", "checkpoints"):
        remove_empty(run_dir / name)
    write_json(run_dir / CONFIG, config)


def prove(run_dir: Path) -> None:
    """Raises StorageError unless config.json or the manifest of FINAL shows that the folder is a run."""
    if (run_dir / CONFIG).is_file() and {"task", "loss", "run_dir"} <= read_json(run_dir / CONFIG).keys():
        return
    if not (run_dir / CONFIG).exists() and (run_dir / "FINAL" / MANIFEST).is_file():
        return
    raise StorageError(f"{run_dir} holds files and no run: overwrite=true removes runs only; choose another exp_name")


def remove_empty(folder: Path) -> None:
    """Removes a folder and its subfolders if they are empty."""
    for path in sorted(folder.rglob("*"), reverse=True) if folder.is_dir() else ():
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def differences(old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    """Returns the keys with forbidden differences, as `key: old -> new`."""
    before, after = _flat(json.loads(json.dumps(old))), _flat(json.loads(json.dumps(new)))
    keys = sorted(set(before) | set(after))
    return [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in keys
        if before.get(key) != after.get(key)
        and not any(key == free or key.startswith(f"{free}.") for free in FREE_KEYS)
    ]


def _flat(tree: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, object] = {}
    for name, value in tree.items():
        flat.update(_flat(value, f"{prefix}.{name}" if prefix else str(name)))
    return flat
