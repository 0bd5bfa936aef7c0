"""Checkpoints that are there whole or not at all, and the rules of a run directory."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from safetensors import SafetensorError

from rankpo.storage import locks
from rankpo.storage.atomic import disk_is_full, replace_text

MANIFEST = "manifest.json"
TRACKER_ID = "tracker_id"
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


class CheckpointError(RuntimeError):
    """A checkpoint that could not be written, or a run directory that must not be used."""


@dataclass(frozen=True)
class Checkpoint:
    """A folder that was written completely. step: updates done when it was."""

    path: Path
    step: int

    @property
    def state(self) -> dict[str, Any]:
        return json.loads((self.path / "state.json").read_text())


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A folder to write into, which takes the name `target` once the block ends well: fsynced, then renamed.

    Raises CheckpointError where the disk is full; what was there before stays.
    """
    recover(target)
    temporary = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        _manifest(temporary)
        for path in [*temporary.rglob("*"), temporary]:
            _fsync(path)
        _replace(temporary, target)
        _fsync(target.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if disk_is_full(error):
            raise CheckpointError(
                f"{target}: the disk is full; nothing was replaced, earlier files are intact"
            ) from error
        raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def recover(target: Path) -> None:
    """Tidies up after a writing of `target` that was cut off: an old folder already moved aside takes its place again.

    Only for the process that holds the run directory: another's half-written folder would go too.
    """
    for old in target.parent.glob(f"{target.name}.old-*"):
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(target)
    for temporary in target.parent.glob(f"{target.name}.tmp-*"):
        shutil.rmtree(temporary, ignore_errors=True)


def _replace(temporary: Path, target: Path) -> None:
    if target.exists():
        old = target.with_name(f"{target.name}.old-{os.getpid()}")
        target.rename(old)
        temporary.rename(target)
        shutil.rmtree(old)
    else:
        temporary.rename(target)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(path: Path) -> str:
    """xxh3-128 of a file's content."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _manifest(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = {str(path.relative_to(folder)): [path.stat().st_size, checksum(path)] for path in files}
    (folder / MANIFEST).write_text(json.dumps(entries, indent=0))


def damage(folder: Path, largest: int | None = None) -> str | None:
    """What is wrong with a folder that `written_whole` made, or None.

    largest: files of more bytes are compared by size alone; None compares the content of all.
    """
    if not (folder / MANIFEST).exists():
        return f"{MANIFEST} is missing"
    try:
        entries = json.loads((folder / MANIFEST).read_text())
    except ValueError:
        return f"{MANIFEST} is not JSON"
    for name, (size, expected) in entries.items():
        path = folder / name
        if not path.exists():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if (largest is None or size <= largest) and checksum(path) != expected:
            return f"{name} has another content than was written"
    return None


class CheckpointStore:
    """The checkpoints of one run: `run_dir`/checkpoints/step-N."""

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / "checkpoints"

    def clean(self) -> None:
        """Tidies up after an interrupted writing."""
        for name in {path.name.split(".")[0] for path in self.folder.glob("step-*.*-*")}:
            recover(self.folder / name)

    def save(self, step: int, write: Callable[[Path], None], state: Mapping[str, Any]) -> Checkpoint:
        """Writes step-N: whatever `write` puts into the folder, and `state` as JSON."""
        with written_whole(self.folder / f"step-{step}") as folder:
            write(folder)
            (folder / "state.json").write_text(json.dumps(state))
        return Checkpoint(self.folder / f"step-{step}", step)

    def list(self) -> list[Checkpoint]:
        """All by step, whether valid or not."""
        numbers = [path.name.removeprefix("step-") for path in self.folder.glob("step-*")]
        return [Checkpoint(self.folder / f"step-{n}", n) for n in sorted(int(n) for n in numbers if n.isdigit())]

    def newest_valid(self, say: Callable[[str], None]) -> Checkpoint | None:
        """The newest whose files are as they were written; damaged ones are passed over with a message."""
        for checkpoint in reversed(self.list()):
            fault = damage(checkpoint.path)
            if fault is None:
                return checkpoint
            say(f"{checkpoint.path} is damaged ({fault}); looking at the one before")
        return None

    def keep(self, step: int, newest: int, others: Collection[int] = ()) -> None:
        """Removes all but the `newest` ones up to `step` and those of the steps in `others`.

        Those after `step` go: the run went back behind them because they were damaged, and a damaged one must not
        take the place of a good one among the newest.
        """
        present = self.list()
        past = [checkpoint for checkpoint in present if checkpoint.step <= step]
        for checkpoint in [*past[:-newest], *present[len(past) :]]:
            if checkpoint.step not in others or checkpoint.step > step:
                shutil.rmtree(checkpoint.path)


@contextmanager
def claim(run_dir: Path) -> Iterator[None]:
    """Holds the run directory; a second process that tries gets a CheckpointError naming the first."""
    lock = run_dir / ".lock"
    with ExitStack() as stack:
        try:
            stack.enter_context(locks.named(lock))
        except locks.Busy:
            raise CheckpointError(f"{run_dir} is in use by {locks.holder(lock)}; choose another exp_name") from None
        yield


def enter_run_dir(run_dir: Path, config: Mapping[str, Any], overwrite: bool, resume: str | None) -> bool:
    """Makes the directory ready and says whether there is something to do; or raises CheckpointError with the key to set.

    A finished run (FINAL is there) is not overwritten without overwrite=true; an unfinished one is continued with
    resume=auto, if its config is the same up to keys that cannot change the result. With resume=auto, a finished
    one of the same config stays as it is: False.
    """
    saved_path = run_dir / "config.json"
    recover(run_dir / "FINAL")
    finished = (run_dir / "FINAL").exists()
    # a run that stopped before its first line, at a bad record say, left nothing to continue or to lose
    begun = saved_path.exists() and any((run_dir / name).exists() for name in ("checkpoints", "metrics.jsonl"))
    if overwrite and (begun or finished):
        return True  # what is there goes when the new run can begin, by `start_again`: bad data must cost nothing
    if not (begun or finished):
        replace_text(saved_path, json.dumps(config, indent=1, sort_keys=True))
        return True
    if finished and resume != "auto":
        raise CheckpointError(f"{run_dir} holds a finished run; set overwrite=true or another exp_name")
    if resume != "auto":
        raise CheckpointError(f"{run_dir} holds an unfinished run; set resume=auto to continue it, or overwrite=true")
    different = differences(json.loads(saved_path.read_text()), config)
    if different:
        raise CheckpointError(f"{run_dir} was started with another config: {'; '.join(different)}; set overwrite=true")
    return not finished


def start_again(run_dir: Path, config: Mapping[str, Any]) -> None:
    """Removes what an earlier run of this name left, and notes the config of the new one: overwrite=true."""
    for name in ("checkpoints", "FINAL", "evaluation", "tensorboard"):
        shutil.rmtree(run_dir / name, ignore_errors=True)
    for name in ("metrics.jsonl", TRACKER_ID):
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
