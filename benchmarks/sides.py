"""Sides of a comparison: each in a process of its own, one update at a time, in turns.

Turns, because machines stall and slow down: what happens to one side's updates then happens to the other's too, and
medians of updates are compared, never totals. Processes of their own, because a process has one peak memory.
"""

from __future__ import annotations

import math
import multiprocessing
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


def device() -> str:
    """The device of all sides: CUDA where there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Outcome:
    """What an update says of itself. value: its loss or whatever both sides must agree on. gflop: useful arithmetic."""

    value: float | None = None
    gflop: float | None = None
    tokens: int | None = None


Update = Callable[[int], Outcome]


@dataclass(frozen=True)
class Side:
    """One way to do the work. make(**arguments) gives the function that does update number 0, 1, …"""

    name: str
    make: Callable[..., Update]
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Measured:
    """One side's updates, the first (warm-up) left out of the times. cpu: seconds of all cores, which other load on the
    machine changes less. peak, base: GB of memory in use by the process,
    at most and before the first update; None where all sides shared a process."""

    name: str
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    base: float | None = None
    peak: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def values(self) -> list[float]:
        return [outcome.value for outcome in self.outcomes if outcome.value is not None]

    @property
    def rate(self) -> float:
        """Useful GFLOP/s, the median over updates. Raises ValueError where a side did not count its arithmetic."""
        counted = [outcome.gflop for outcome in self.outcomes[-len(self.seconds) :] if outcome.gflop is not None]
        return statistics.median(gflop / taken for gflop, taken in zip(counted, self.seconds, strict=True))


class SideError(RuntimeError):
    """A side that failed in its process, with that process's traceback."""


class DisagreementError(RuntimeError):
    """Two sides that should do the same arithmetic do not: their times say nothing."""


class OwnProcess:
    """A side in a process of its own, which sleeps between its turns."""

    def __init__(self, side: Side, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.side = side
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(side, threads, other), daemon=True)
        self.process.start()
        other.close()

    def receive(self) -> Any:
        try:
            kind, content = self.connection.recv()
        except EOFError as error:
            self.process.join()
            raise SideError(
                f"{self.side.name}: its process ended with code {self.process.exitcode} (-9: out of memory)"
            ) from error
        if kind == "failed":
            raise SideError(f"{self.side.name}:\n{content}")
        return content

    def run(self, step: int) -> tuple[float, float, Outcome]:
        self.connection.send(step)
        return self.receive()

    def memory(self) -> tuple[float | None, float | None]:
        self.connection.send(None)
        return self.receive()

    def close(self) -> None:
        self.connection.close()
        self.process.join(timeout=10)
        if self.process.is_alive():
            self.process.terminate()


class SharedProcess:
    """A side in this process: quick to start, without a memory of its own."""

    def __init__(self, side: Side, threads: int) -> None:
        self.update = _made(side, threads)

    def receive(self) -> None:
        return None

    def run(self, step: int) -> tuple[float, float, Outcome]:
        return _timed(self.update, step)

    def memory(self) -> tuple[float | None, float | None]:
        return None, None

    def close(self) -> None:
        del self.update


def measure(
    sides: Sequence[Side], updates: int, threads: int, isolated: bool = True, warmup: int = 1
) -> dict[str, Measured]:
    """Every side does updates 0 … warmup + updates - 1, in turns, the order reversed every other round."""
    opened: list[OwnProcess | SharedProcess] = []
    measured = [Measured(side.name) for side in sides]
    try:
        for side in sides:
            opened.append((OwnProcess if isolated else SharedProcess)(side, threads))
            opened[-1].receive()  # one after the other: several at once could need too much memory to load
        for step in range(warmup + updates):
            turns = list(zip(opened, measured, strict=True))
            for worker, result in turns if step % 2 == 0 else reversed(turns):
                seconds, cpu, outcome = worker.run(step)
                result.outcomes.append(outcome)
                if step >= warmup:
                    result.seconds.append(seconds)
                    result.cpu.append(cpu)
        for worker, result in zip(opened, measured, strict=True):
            result.base, result.peak = worker.memory()
    finally:
        for worker in opened:
            worker.close()
    return {result.name: result for result in measured}


def require_same(first: Measured, second: Measured, tolerance: float = 1e-4) -> None:
    """Raises DisagreementError unless both have the same values update by update, to a fraction of `tolerance`."""
    if not first.values or len(first.values) != len(second.values):
        raise DisagreementError(f"{first.name} and {second.name} give {len(first.values)}, {len(second.values)} values")
    for step, (a, b) in enumerate(zip(first.values, second.values, strict=True)):
        if not math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance):
            raise DisagreementError(f"update {step}: {first.name} has {a:.7f}, {second.name} has {b:.7f}")


def peak_memory() -> float:
    """GB that this process has had in use at most.

    On Linux VmHWM: ru_maxrss of a process begins at what its parent had in use when it was started. Elsewhere
    ru_maxrss, in KiB, on macOS in bytes.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def _serve(side: Side, threads: int, connection: Connection) -> None:
    try:
        update = _made(side, threads)
        base = peak_memory()
        connection.send(("ready", None))
        while True:
            step = connection.recv()
            connection.send(("done", (base, peak_memory()) if step is None else _timed(update, step)))
    except EOFError:
        return  # the parent has closed its end: no more updates
    except Exception:  # whatever it was, the parent is told and raises
        connection.send(("failed", traceback.format_exc()))


def _made(side: Side, threads: int) -> Update:
    update = side.make(**side.arguments)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    return update


def _timed(update: Update, step: int) -> tuple[float, float, Outcome]:
    started, worked = time.perf_counter(), time.process_time()
    outcome = update(step)
    return time.perf_counter() - started, time.process_time() - worked, outcome
