"""Handlers of SIGTERM and SIGUSR1, so that a run ends with a checkpoint and an exit code that asks for a restart.

A training run finishes its current update before it writes the checkpoint.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

REQUEUE = 75  # Exit code EX_TEMPFAIL of sysexits.h: "temporary failure, the user is invited to retry".
# A scheduler sends one of these signals shortly before a time limit or a preemption. Windows has no SIGUSR1.
SIGNALS = tuple(signal.Signals[name] for name in ("SIGTERM", "SIGUSR1") if name in signal.Signals.__members__)


class Interrupted(RuntimeError):
    """The trainer raises this error after a signal, once the checkpoint is written. resume=auto continues the run."""


@dataclass
class Notice:
    """A record of received signals, which the trainer polls. signal: the name of the last received signal, or None."""

    signal: str | None = None


@contextmanager
def noticed() -> Iterator[Notice]:
    """Records signals that arrive inside the block, and lets the block continue.

    Python allows signal handlers in the main thread only, so in other threads this function records nothing.
    """
    notice = Notice()

    def note(number: int, _: FrameType | None) -> None:
        notice.signal = signal.Signals(number).name

    with _handled_by(note):
        yield notice


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """Ends the process with the exit code REQUEUE at any signal inside this block, except inside `noticed`.

    An immediate exit is safe, because all writes are atomic and the next start repeats the work before the first
    update. scripts/slurm_launch.sh makes the launcher ignore SIGUSR1, and child processes inherit this. Without this
    handler, they would ignore the signal too.
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
