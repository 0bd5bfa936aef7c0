"""SIGTERM and SIGUSR1: the update that runs is finished, a checkpoint written, and the process asks to be run again."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

REQUEUE = 75  # exit code; EX_TEMPFAIL of sysexits.h: "temporary failure, the user is invited to retry"
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # what schedulers send before a time limit or a preemption


class Interrupted(RuntimeError):
    """The run stopped because it was asked to; its checkpoint is written, and resume=auto continues it."""


@dataclass
class Notice:
    """signal: the name of the last signal that came, or None."""

    signal: str | None = None


@contextmanager
def noticed() -> Iterator[Notice]:
    """Signals that come inside are noted and do nothing else; outside the main thread none can be."""
    notice = Notice()
    if threading.current_thread() is not threading.main_thread():
        yield notice
        return

    def note(number: int, _: FrameType | None) -> None:
        notice.signal = signal.Signals(number).name

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield notice
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
