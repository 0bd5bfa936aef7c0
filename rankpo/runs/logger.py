"""Logger of a run: console, metrics.jsonl and trackers. Only this module prints."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rankpo.runs.trackers import Trackers, trackers_of
from rankpo.storage.atomic import replace_text
from rankpo.storage.json_lines import Record, read_lines
from rankpo.storage.printable import shown

if TYPE_CHECKING:
    from rankpo.runs.progress import LiveLine

SHOWN = ("loss", "rewards/accuracies", "scores/accuracies", "grad_norm", "learning_rate")


class MetricsLogger:
    """Console lines and metrics.jsonl on the main process; silent elsewhere.

    run_dir None: nothing is written. tracker: the config's `tracker` node.
    """

    def __init__(
        self,
        run_dir: Path | None = None,
        *,
        main: bool = True,
        tracker: Mapping[str, object] | None = None,
        config: Mapping[str, object] | None = None,
        stream: TextIO | None = None,
    ) -> None:
        self.main = main
        self.stream = stream or sys.stderr
        self.path = None if run_dir is None or not main else run_dir / "metrics.jsonl"
        self._trackers: Trackers | None = None
        self._open = trackers_of(tracker or {}, run_dir, config or {}) if main and run_dir is not None else None
        self._started = time.monotonic()
        self._first_step = self._total = self._step = 0
        self._tokens = 0
        self._seconds = 0.0
        self._live: LiveLine | None = None

    def say(self, message: str) -> None:
        """Prints a notice on the main process."""
        if not self.main:
            return
        if self._live is not None:
            self._live.say(shown(message))
            return
        self.stream.write(f"{shown(message)}\n")
        self.stream.flush()

    def start(self, total_steps: int, first_step: int, *, afresh: bool = False, every: int | None = None) -> None:
        """Begins the progress of a run of `total_steps`, and removes lines of metrics.jsonl after `first_step`.

        afresh: removes all lines, because no checkpoint covers them. every: updates between two lines of training
        metrics; a continued run reports lines that are missing at the end of the file.
        """
        self._total, self._first_step, self._started = total_steps, first_step, time.monotonic()
        records: list[Record] = []
        if self.path is not None and self.path.exists():
            records = read_lines(self.path, needed=("step",))
            kept = [] if afresh else [record for record in records if record["step"] <= first_step]
            replace_text(self.path, "".join(f"{json.dumps(record)}\n" for record in kept))
        if self.path is not None and every is not None and (line := missing_lines(records, first_step, every)):
            self.say(f"{self.path}: {line}")
        if self.main and self.stream.isatty():
            from rankpo.runs.progress import LiveLine

            self._live = LiveLine(self.stream, total_steps, first_step)
        if self._open is not None:
            self._trackers = self._open(first_step, {key for record in records for key in _logged(record)})

    def tick(self, step: int, tokens: int, seconds: float) -> None:
        """Advances the progress by one update."""
        self._step, self._tokens, self._seconds = step, self._tokens + tokens, self._seconds + seconds
        if self._live is not None:
            self._live.update(step, tokens, seconds)

    def log(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        """Writes metrics. kind: "train" or "eval", the prefix of every name."""
        if not self.main:
            return
        values = dict(metrics)
        if kind == "train" and self._seconds:
            values["tokens_per_second"] = self._tokens / self._seconds
            self._tokens, self._seconds = 0, 0.0
        named = {f"{kind}/{name}": value for name, value in values.items()}
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            record = {"step": step, "time": round(time.time(), 3), **{k: _finite(v) for k, v in named.items()}}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        if self._trackers is not None:
            self._trackers.log(kind, step, named)
        if self._live is not None and kind == "train":
            self._live.loss(values.get("loss", math.nan))
            return
        self.say(self._line(kind, step, values))

    def _line(self, kind: str, step: int, values: Mapping[str, float]) -> str:
        shown = {name: values[name] for name in SHOWN if name in values} if kind == "train" else values
        text = " · ".join(f"{name} {value:.4g}" for name, value in shown.items())
        if kind != "train" or not self._total:
            return f"{kind} at step {step} · {text}"
        done = step - self._first_step
        remaining = (time.monotonic() - self._started) / max(1, done) * (self._total - step)
        rate = values.get("tokens_per_second")
        speed = f" · {rate:,.0f} tokens/s" if rate else ""
        return f"step {step}/{self._total} · {text}{speed} · ETA {_duration(remaining)}"

    def table(self, rows: Sequence[Mapping[str, object]], title: str = "") -> str:
        """Prints rows as aligned columns of at most 80 characters to standard output, and returns the text."""
        from rankpo.runs.tables import text_of

        text = shown("".join([f"{title}\n" if title else "", text_of(rows)]))
        if self.main:
            sys.stdout.write(text)
            sys.stdout.flush()
        return text

    def finish(self) -> None:
        if self._trackers is not None:
            self._trackers.finish()
        if self._live is not None:
            self._live.stop()
            self._live = None


@contextmanager
def counting(what: str, total: int, shown: bool) -> Iterator[Callable[[int], None] | None]:
    """Shows a progress bar up to `total`; yields None without a terminal."""
    if not shown:
        yield None
        return
    from rich.progress import Progress

    with Progress() as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


def _logged(record: Record) -> set[tuple[str, int]]:
    """The kinds of metrics in a line of metrics.jsonl, with its step."""
    return {(name.partition("/")[0], record["step"]) for name in record if "/" in name}


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def missing_lines(records: Sequence[Record], first_step: int, every: int) -> str | None:
    """One line if the file lacks training metrics just before `first_step`, as after damage, else None."""
    steps = [record["step"] for record in records if any(name.startswith("train/") for name in record)]
    last = max((step for step in steps if step <= first_step), default=0)
    gap = max([every, *(after - before for before, after in pairwise(steps))])
    if first_step - last < gap:
        return None
    return (
        f"the training metrics of updates {last + 1} to {first_step} are missing; the curve of this run has a gap there"
    )
