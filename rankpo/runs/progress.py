"""Progress line of a training on a terminal: bar, update, loss, tokens per second, remaining time, memory."""

from __future__ import annotations

import atexit
import sys
from typing import TextIO

import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

RATE_WINDOW = 0.9  # Decay of the running rate: a mean over about ten updates.


class LiveLine:
    """A line that every update redraws. Notices are printed above it."""

    def __init__(self, stream: TextIO, total: int, first: int) -> None:
        self._console = Console(file=stream)
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(compact=True),
            console=self._console,
            transient=True,
        )
        self._task = self._progress.add_task("training", total=total, completed=first, figures="")
        self._loss: float | None = None
        self._rate: float | None = None
        self._progress.start()
        atexit.register(self.stop)  # A failing run must restore the cursor.

    def say(self, message: str) -> None:
        """Prints a notice above the line, without interpreting markup."""
        self._console.print(Text(message), soft_wrap=True)

    def loss(self, value: float) -> None:
        """Sets the loss of the last log line."""
        self._loss = value

    def update(self, step: int, tokens: int, seconds: float) -> None:
        """Advances by one update. tokens: its tokens; seconds: its duration."""
        if seconds > 0:
            now = tokens / seconds
            self._rate = now if self._rate is None else RATE_WINDOW * self._rate + (1 - RATE_WINDOW) * now
        self._progress.update(self._task, completed=step, figures=self._figures())

    def _figures(self) -> str:
        parts = [f"loss {self._loss:.4g}"] if self._loss is not None else []
        parts += [f"{self._rate:,.0f} tokens/s"] if self._rate is not None else []
        return " · ".join([*parts, memory()])

    def stop(self) -> None:
        self._progress.stop()
        atexit.unregister(self.stop)


def memory() -> str:
    """The memory of the process: on the GPU if it uses one, else in main memory."""
    torch = sys.modules.get("torch")  # A training has already imported torch; tests of this line work without it.
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return f"{torch.cuda.memory_reserved() / 2**30:.1f} GiB of the GPU"
    return f"{psutil.Process().memory_info().rss / 2**30:.1f} GiB"
