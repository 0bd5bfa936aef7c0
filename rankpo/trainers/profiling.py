"""Profile of a few updates by torch.profiler: a trace for a viewer, and a table of the operators that take most time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.profiler import ProfilerActivity, profile, schedule

if TYPE_CHECKING:
    from torch.autograd.profiler_util import FunctionEventAvg

    from rankpo.runs.logger import MetricsLogger

FILE = "profile.json"
SHOWN = 10
# Events of a GPU in which the CPU waits for it.
WAITS = (
    *("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"),
    *("Memcpy DtoH (Device -> Pageable)", "Memcpy DtoH (Device -> Pinned)"),
)


@contextmanager
def profiled(updates: int, folder: Path, logger: MetricsLogger) -> Iterator[Callable[[], None]]:
    """Yields a function to call after each update. The first update warms up, and the next `updates` are recorded.

    updates: 0 records nothing. The trace goes to `folder`/profile.json on the first rank, for chrome://tracing and
    https://ui.perfetto.dev, and the table to the log.
    """
    if not updates or not logger.main:
        yield _nothing
        return
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]

    def report(made: profile) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        made.export_chrome_trace(str(folder / FILE))
        rows = heaviest(made.key_averages())
        title = f"The {len(rows)} operators with most time of their own, over {updates} updates:"
        logger.table(rows, title)
        if torch.cuda.is_available():
            logger.say(waits_line(made.key_averages(), updates))
        logger.say(f"profile written to {folder / FILE}; open it in chrome://tracing or https://ui.perfetto.dev")

    steps = schedule(wait=0, warmup=1, active=updates, repeat=1)
    with profile(activities=activities, schedule=steps, on_trace_ready=report) as recorder:
        yield recorder.step


def _nothing() -> None:
    """Records nothing."""


def heaviest(events: Sequence[FunctionEventAvg]) -> list[dict[str, object]]:
    """Rows of a table: the operators with most time of their own on the device, or on the CPU if there is no other."""
    on_device = any(event.self_device_time_total for event in events)
    named = {str(event.key): event for event in events if not str(event.key).startswith("ProfilerStep")}
    times = {
        name: event.self_device_time_total if on_device else event.self_cpu_time_total for name, event in named.items()
    }
    whole = sum(times.values()) or 1
    ordered = sorted(times, key=lambda name: -times[name])[:SHOWN]
    return [
        {
            "operator": name[:48],
            "GPU ms" if on_device else "CPU ms": f"{times[name] / 1e3:.1f}",
            "share": f"{times[name] / whole:.1%}",
            "calls": named[name].count,
        }
        for name in ordered
        if times[name]
    ]


def waits_line(events: Sequence[FunctionEventAvg], updates: int) -> str:
    """One line with the number of events that wait for the device, per update."""
    found = {event.key: event.count for event in events if event.key in WAITS}
    counted = ", ".join(f"{name} {count / updates:.1f}" for name, count in found.items())
    return f"waits for the device per update: {counted or 'none'}"
