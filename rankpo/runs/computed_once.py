"""Computed files with a lock: one job computes a file, and the others wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rankpo.runs import processes
from rankpo.storage import locks

POLL_SECONDS = 0.5


@contextmanager
def must_compute(
    path: Path, say: Callable[[str], None], is_valid: Callable[[Path], bool] = Path.exists
) -> Iterator[bool]:
    """Whether this job must write `path` inside the block. All ranks must call it and get the same result.

    While one job computes, others wait. If it ends without the file, the next job computes it. Rank 0 polls the lock
    instead of waiting for it, because the other ranks are in a collective call, which would time out. is_valid: whether
    the file exists and can be used; an invalid file is computed again.
    """
    said = False
    with ExitStack() as lock:
        while (answer := processes.broadcast_object(_answer(path, lock, is_valid))) == "wait":
            if not said:
                say(f"another job computes {path}; waiting for it")
                said = True
            time.sleep(POLL_SECONDS)
        yield answer == "ours"


def _answer(path: Path, lock: ExitStack, is_valid: Callable[[Path], bool]) -> str:
    """Returns `there`, `ours` or `wait`. Only the value of rank 0 is used; it holds the lock while `lock` is open."""
    if processes.rank() != 0:
        return ""
    try:
        lock.enter_context(locks.locked(path.with_name(f"{path.name}.lock"), wait=0))
    except locks.Busy:
        return "wait"
    # The check follows the lock, because the previous holder may have written the file.
    return "there" if is_valid(path) else "ours"
