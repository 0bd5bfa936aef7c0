"""The run directory: its lock, and the checks before a run starts or continues in it."""

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
TRACKER_RUNS = "tracker_runs.json"  # Maps each tracker to the name of this run there.
RUN_FILES = (  # A run writes these files beside its checkpoints and FINAL.
    "metrics.jsonl",
    "origin.json",
    "data_report.json",
    "profile.json",
    TRACKER_ID,
    TRACKER_RUNS,
    "tensorboard/**/events.out.tfevents.*",
    "evaluation/*/*/metrics.json",
    "evaluation/*/*/per_query.jsonl",
    "evaluation/*/*/run.trec",
)
# A run may resume with other values of these keys, since they do not affect the result.
FREE_KEYS = (
    "overwrite",
    "resume",
    "allow_changes",
    "runs_dir",  # run_dir is derived from this key.
    "run_dir",  # A run may be moved; earlier versions wrote runs/NAME/. for runs/NAME.
    "tracker",
    "task",
    "trainer.log_every",
    "trainer.timeout_minutes",
    "trainer.max_tokens",
    "trainer.profile_updates",
    "trainer.memory_plan",
    "trainer.save_every",
    "trainer.keep_checkpoints",
    "trainer.intermediate_checkpoints",
)


@contextmanager
def claim(run_dir: Path) -> Iterator[None]:
    """Locks the run directory inside the block. Raises StorageError, which names the owner, if it is already locked."""
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
    """Prepares the run directory and returns True if the run has work to do. StorageError names the key to set.

    With overwrite=true, the run may replace an earlier run of the same name. With resume=auto, an unfinished run
    continues and a finished run returns False; the config must then equal the saved one, except for `FREE_KEYS`. In all
    other cases, a run with results raises StorageError, so that no results are lost.

    comparable: a function that converts both configs before they are compared, see `config.moved.comparable`.
    """
    saved_path = run_dir / CONFIG
    recover(run_dir / "FINAL")
    finished = (run_dir / "FINAL").exists()
    # If a run stopped before its first log line, such as at a bad record, it has no results, and a new run may start.
    begun = saved_path.exists() and any((run_dir / name).exists() for name in ("checkpoints", "metrics.jsonl"))
    if overwrite and (begun or finished):
        prove(run_dir)
        return True  # `start_again` removes old files after the data is read, so that bad data does not destroy them.
    if not (begun or finished):
        write_json(saved_path, config)
        return True
    if finished and resume != "auto":
        raise StorageError(f"{run_dir} holds a finished run; set overwrite=true or another exp_name")
    if resume != "auto":
        raise StorageError(f"{run_dir} holds an unfinished run; set resume=auto to continue it, or overwrite=true")
    different = differences(comparable(read_json(saved_path)), comparable(config))
    if different:
        raise StorageError(
            f"{run_dir} was started with another config: {'; '.join(different)}; restore these values to continue it; "
            "another exp_name, or overwrite=true, which removes it, starts from the beginning"
        )
    return not finished


def start_again(run_dir: Path, config: Mapping[str, object]) -> None:
    """Removes the files of an earlier run (overwrite=true) and writes the config of the new run.

    All other files remain. Raises StorageError if the folder does not contain a run, see `prove`.
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
    """Raises StorageError unless the folder is a run, so that overwrite=true cannot delete files of the user.

    A run has a config.json with the keys of a run, or no config.json and a FINAL with a manifest.
    """
    if (run_dir / CONFIG).is_file() and {"task", "loss", "run_dir"} <= read_json(run_dir / CONFIG).keys():
        return
    if not (run_dir / CONFIG).exists() and (run_dir / "FINAL" / MANIFEST).is_file():
        return
    raise StorageError(f"{run_dir} holds files and no run: overwrite=true removes runs only; choose another exp_name")


def remove_empty(folder: Path) -> None:
    """Removes all empty subfolders of a folder, and then the folder if it is empty."""
    for path in sorted(folder.rglob("*"), reverse=True) if folder.is_dir() else ():
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def differences(old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    """Returns one line `key: old -> new` for each key that differs and is not in `FREE_KEYS`."""
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
