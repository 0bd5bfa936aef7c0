"""File lock for computed files: one job computes, the others wait."""

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
    """Whether this job has to write `path` inside the block, whole; the same on all its ranks, which call it together.

    While one job does, others wait; where it ends without the file, the next one takes over. Rank 0 asks for the lock
    and never waits for it: the other ranks sit in a collective call, which would time out. is_valid: whether the file is
    there and can be used; one that cannot is computed again.
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
    """`there`, `ours` or `wait`; only rank 0's counts, which then holds the lock as long as `lock` is open."""
    if processes.rank() != 0:
        return ""
    try:
        lock.enter_context(locks.locked(path.with_name(f"{path.name}.lock"), wait=0))
    except locks.Busy:
        return "wait"
    # looked for under the lock: whoever had it before may have written the file
    return "there" if is_valid(path) else "ours"
