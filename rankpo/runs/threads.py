"""Threads of a run compared with free cores, since a run on an overloaded machine can be many times slower."""

from __future__ import annotations

import os
from pathlib import Path

import torch

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # Linux: "200000 100000" is two cores; "max 100000" no limit


def cores(quota: Path = QUOTA) -> float:
    """Returns the cores that this process may use: its affinity, and a container's quota if that is smaller."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        allowed, period = quota.read_text(encoding="utf-8").split()
        return own if allowed == "max" else min(own, int(allowed) / int(period))
    except (OSError, ValueError):
        return own


def load() -> float:
    """Returns the mean number of running threads of the machine in the last minute; 0 where the system has none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def advice(threads: int, processes: int, cores: float, load: float) -> str | None:
    """Returns one line if `processes` processes of `threads` threads each exceed the free cores, else None.

    One thread in each process is not reported, since fewer are impossible. This process itself may be up to 1 of `load`.
    """
    free = max(0.0, cores - max(0.0, load - 1))
    if threads == 1 or threads * processes <= free:
        return None
    started = f"{threads} threads" if processes == 1 else f"{processes} processes of {threads} threads"
    fitting = max(1, int(free // processes))
    return (
        f"{started} share {cores:g} cores, of which about {free:.1f} are free (load {load:.1f}); threads that wait for "
        f"each other can make a run 10 times slower: set OMP_NUM_THREADS={fitting}"
    )


def thread_advice() -> str | None:
    """Returns a one-line warning if the run has more threads on this machine than there are free cores, else None."""
    own = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return advice(torch.get_num_threads(), own, cores(), load())
