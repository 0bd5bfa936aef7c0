"""Memory of a device that this process may still take: of a GPU, or of the machine and the container for a CPU."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import torch

LIMIT = Path("/sys/fs/cgroup/memory.max")  # Linux: bytes, or "max" for no limit
USED = Path("/sys/fs/cgroup/memory.current")


def free_bytes(device: torch.device) -> int | None:
    """Returns the bytes that this process may still allocate on the device, or None if the device does not say.

    The processes of this run on one machine share the memory of CPUs equally.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    return free_ram() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def free_ram(limit: Path = LIMIT, used: Path = USED) -> int:
    """Returns the free bytes of the machine, or what a container's limit leaves if that is less."""
    free = int(psutil.virtual_memory().available)
    try:
        allowed = limit.read_text(encoding="utf-8").strip()
        return free if allowed == "max" else min(free, max(0, int(allowed) - int(used.read_text(encoding="utf-8"))))
    except (OSError, ValueError):
        return free
