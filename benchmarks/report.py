"""What a benchmark found: a table, its goals, and where it was measured, as a dated file and on the console."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.sides import Measured
from rankpo.runs.logger import MetricsLogger
from rankpo.tasks.description import git

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "sentence-transformers", "tokenizers", "numpy")


@dataclass(frozen=True)
class Options:
    """updates: measured ones, per side; None for the benchmark's own number. quick: tiny sizes, to see that it runs.
    isolated: each side in a process of its own."""

    updates: int | None = None
    threads: int = 2
    quick: bool = False
    isolated: bool = True


@dataclass(frozen=True)
class Goal:
    """A number and what it should reach: at least `target`, or at most if `upper`."""

    what: str
    value: float
    target: float
    upper: bool = False
    unit: str = ""

    @property
    def reached(self) -> bool:
        return self.value <= self.target if self.upper else self.value >= self.target

    def __str__(self) -> str:
        sign = "≤" if self.upper else "≥"
        verdict = "reached" if self.reached else "missed"
        return f"{self.what}: **{self.value:.3g}{self.unit}** (goal {sign} {self.target:g}{self.unit}: {verdict})"


@dataclass
class Report:
    """name: the module. work: one sentence on what is done. rows: the table. remarks: further lines."""

    name: str
    work: str
    rows: Sequence[Mapping[str, Any]]
    goals: Sequence[Goal] = ()
    remarks: Sequence[str] = field(default_factory=tuple)

    def markdown(self, place: str) -> str:
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        lines = [f"## {self.name}", "", self.work, place, "", f"| {' | '.join(names)} |"]
        lines.append("|" + "|".join(" --- " for _ in names) + "|")
        lines += ["| " + " | ".join(_cell(row.get(name)) for name in names) + " |" for row in self.rows]
        lines += ["", *(f"- {item}" for item in (*self.goals, *self.remarks)), ""]
        return "\n".join(lines)


def row(measured: Measured, **more: Any) -> dict[str, Any]:
    """One side's line of a table: median and range of seconds, values of the first and last update, memory."""
    line: dict[str, Any] = {
        "side": measured.name,
        "median s": measured.median,
        "median CPU s": statistics.median(measured.cpu),
        "range s": f"{min(measured.seconds):.3g} to {max(measured.seconds):.3g}",
    }
    if measured.values:
        line["value, first and last update"] = f"{measured.values[0]:.6f}, {measured.values[-1]:.6f}"
    if measured.peak is not None and measured.base is not None:
        line["peak GB"] = measured.peak
        line["of it before the first update"] = measured.base
    return {**line, **more}


def ratio(peer: Measured, ours: Measured) -> float:
    """How many times ours fits into the peer's median."""
    return peer.median / ours.median


def parse(name: str, arguments: Sequence[str] | None = None) -> Options:
    parser = argparse.ArgumentParser(prog=f"python -m {name}", description="See benchmarks/README.md.")
    parser.add_argument("--updates", type=_positive, help="measured updates of each side (default: as the table says)")
    parser.add_argument("--threads", type=_positive, default=2, help="of each side; they take turns (default 2)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes in one process, to see that it runs; no file")
    given = parser.parse_args(arguments)
    return Options(given.updates, given.threads, given.quick, isolated=not given.quick)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be >= 1, got {number}")
    return number


def publish(report: Report, options: Options, load_before: float, logger: MetricsLogger | None = None) -> None:
    """Prints the report and, unless the run was quick, appends it to today's file in benchmarks/results."""
    text = report.markdown(environment(options, load_before))
    (logger or MetricsLogger(stream=sys.stdout)).say(text)
    if not options.quick:
        RESULTS.mkdir(exist_ok=True)
        with (RESULTS / f"{datetime.now():%Y-%m-%d}.md").open("a") as file:
            file.write(f"{text}\n")


def load() -> float:
    """Processes that ran or waited in the last minute: what else kept the machine busy."""
    return os.getloadavg()[0]


def environment(options: Options, load_before: float) -> str:
    """Machine, versions and commit in one line."""
    memory = psutil.virtual_memory().total / 2**30
    parts = [
        f"{datetime.now():%Y-%m-%d %H:%M}",
        f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB, {options.threads} threads",
        f"load average {load_before:.1f} before",
        f"Python {platform.python_version()}, " + ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
        f"commit {_commit()}",
    ]
    return f"*{' · '.join(parts)}*"


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "rankpo", "benchmarks")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (" with changes" if changed else "")


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
