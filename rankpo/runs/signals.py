"""Handlers of SIGTERM and SIGUSR1, which finish the update, write a checkpoint, and exit with a code for requeueing."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

REQUEUE = 75  # Exit code EX_TEMPFAIL of sysexits.h: "temporary failure, the user is invited to retry".
# Schedulers send these before a time limit or a preemption. Windows has no SIGUSR1.
SIGNALS = tuple(signal.Signals[name] for name in ("SIGTERM", "SIGUSR1") if name in signal.Signals.__members__)


class Interrupted(RuntimeError):
    """Raised after a signal, once the checkpoint is written; resume=auto continues the run."""


@dataclass
class Notice:
    """signal: the name of the last received signal, or None."""

    signal: str | None = None


@contextmanager
def noticed() -> Iterator[Notice]:
    """Records signals inside the block without further effect; does nothing outside the main thread."""
    notice = Notice()

    def note(number: int, _: FrameType | None) -> None:
        notice.signal = signal.Signals(number).name

    with _handled_by(note):
        yield notice


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """Signals inside this block, but outside of `noticed`, end the process at once with the exit code REQUEUE.

    This is safe, since all writes are atomic and the work before the first update can be repeated. Without this handler,
    SIGUSR1 would be lost if a launcher ignores it, as scripts/slurm_batch.sh must.
    """

    def leave(number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        # os.write is used because a signal can interrupt a write of Python's file objects, which are not reentrant.
        os.write(
            2, f"{name}: stopped. Start the same command again to continue; a training needs resume=auto.\n".encode()
        )
        os._exit(REQUEUE)

    with _handled_by(leave):
        yield


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)
