"""A run's folder: who holds it, whether a run may begin or continue there, and with which config."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rankpo.errors import StorageError
from rankpo.storage import locks
from rankpo.storage.folders import recover
from rankpo.storage.json_files import read_json, write_json

Comparable = Callable[[Mapping[str, Any]], Mapping[str, Any]]

TRACKER_ID = "tracker_id"
TRACKER_RUNS = "tracker_runs.json"  # what the run is called by trackers that give it a name
# may differ between the start of a run and its continuation
FREE_KEYS = (
    "overwrite",
    "resume",
    "tracker",
    "task",
    "trainer.log_every",
    "trainer.timeout_minutes",
    "trainer.max_tokens",
)


@contextmanager
def claim(run_dir: Path) -> Iterator[None]:
    """Holds the run directory; a second process that tries gets a StorageError naming the first."""
    lock = run_dir / ".lock"
    with ExitStack() as stack:
        try:
            stack.enter_context(locks.named(lock))
        except locks.Busy:
            raise StorageError(f"{run_dir} is in use by {locks.holder(lock)}; choose another exp_name") from None
        yield


def enter_run_dir(
    run_dir: Path,
    config: Mapping[str, Any],
    overwrite: bool,
    resume: str | None,
    comparable: Comparable = lambda tree: tree,
) -> bool:
    """Makes the directory ready and says whether there is something to do; or raises StorageError with the key to set.

    A finished run (FINAL is there) is not overwritten without overwrite=true; an unfinished one is continued with
    resume=auto, if its config is the same up to keys that cannot change the result. With resume=auto, a finished
    one of the same config stays as it is: False.

    comparable: gives the form in which the saved config and this one are compared; see `config.moved.comparable`.
    """
    saved_path = run_dir / "config.json"
    recover(run_dir / "FINAL")
    finished = (run_dir / "FINAL").exists()
    # a run that stopped before its first line, at a bad record say, left nothing to continue or to lose
    begun = saved_path.exists() and any((run_dir / name).exists() for name in ("checkpoints", "metrics.jsonl"))
    if overwrite and (begun or finished):
        return True  # what is there goes when the new run can begin, by `start_again`: bad data must cost nothing
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


def start_again(run_dir: Path, config: Mapping[str, Any]) -> None:
    """Removes what an earlier run of this name left, and notes the config of the new one: overwrite=true."""
    for name in ("checkpoints", "FINAL", "evaluation", "tensorboard"):
        shutil.rmtree(run_dir / name, ignore_errors=True)
    for name in ("metrics.jsonl", TRACKER_ID, TRACKER_RUNS):
        (run_dir / name).unlink(missing_ok=True)
    enter_run_dir(run_dir, config, overwrite=False, resume=None)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Keys that differ and may not, as `key: old -> new`."""
    before, after = _flat(json.loads(json.dumps(old))), _flat(json.loads(json.dumps(new)))
    keys = sorted(set(before) | set(after))
    return [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in keys
        if before.get(key) != after.get(key)
        and not any(key == free or key.startswith(f"{free}.") for free in FREE_KEYS)
    ]


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat.update(_flat(value, f"{prefix}.{name}" if prefix else str(name)))
    return flat
