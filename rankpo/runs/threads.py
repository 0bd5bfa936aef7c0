"""Threads of a run compared with free cores, since a run on an overloaded machine can be many times slower."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # Linux: "200000 100000" is two cores; "max 100000" no limit
NOT_BUSY = ("idle", "iowait", "guest", "guest_nice", "interrupt", "dpc")  # The last four are parts of other fields.
SHORTEST = 0.2  # seconds over which the processes of other programs are watched


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Seconds since any fixed time: on the wall, of all cores of the machine at work, and of this process at work."""

    wall: float
    machine: float
    own: float

    @classmethod
    def now(cls) -> Clock:
        times = psutil.cpu_times()._asdict()
        busy = sum(seconds for name, seconds in times.items() if name not in NOT_BUSY)
        return cls(wall=time.monotonic(), machine=busy, own=time.process_time())


STARTED = Clock.now()  # As this module is imported, seconds before the line is printed.


def cores(quota: Path = QUOTA) -> float:
    """Returns the cores that this process may use: its affinity, and a container's quota if that is smaller."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        allowed, period = quota.read_text(encoding="utf-8").split()
        return own if allowed == "max" else min(own, int(allowed) / int(period))
    except (OSError, ValueError):
        return own


def busy_elsewhere(first: Clock, last: Clock, ranks: int) -> float:
    """Returns how many cores other programs used between two clocks. ranks: processes of this run on this machine.

    The load average of the system would count the commands that ran before this one, for minutes.
    """
    others = (last.machine - first.machine) - (last.own - first.own)
    return max(0.0, others / max(last.wall - first.wall, 1e-9) - (ranks - 1))


def advice(threads: int, processes: int, cores: float, free: float) -> str | None:
    """Returns one line if `processes` processes of `threads` threads each exceed the free cores, else None.

    One thread in each process is not reported, since fewer are impossible. Half a core more than free is not reported.
    """
    if threads == 1 or threads * processes <= free + 0.5:
        return None
    started = f"{threads} threads" if processes == 1 else f"{processes} processes of {threads} threads"
    fitting = max(1, int(free + 0.5) // processes)
    return (
        f"{started} share {cores:g} cores, of which about {free:.1f} are free; threads that wait for each other can make "
        f"a run 10 times slower: set OMP_NUM_THREADS={fitting}"
    )


def thread_advice() -> str | None:
    """Returns a one-line warning if the run has more threads on this machine than there are free cores, else None."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    now = Clock.now()
    if now.wall - STARTED.wall < SHORTEST:
        time.sleep(SHORTEST)
        now = Clock.now()
    machine = max(0.0, (os.cpu_count() or 1) - busy_elsewhere(STARTED, now, ranks))
    return advice(torch.get_num_threads(), ranks, cores(), min(cores(), machine))
