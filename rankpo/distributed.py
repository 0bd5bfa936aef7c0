"""Processes: the only importer of torch.distributed, and the one place that builds an Accelerator."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor

from rankpo.config_errors import ConfigError

PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


class LaunchError(RuntimeError):
    """The processes that run are not those that were asked for."""


def make_accelerator(precision: str = "fp32", timeout_minutes: float = 30) -> Accelerator:
    """The Accelerator of this run, on CUDA where there is a device, else on CPUs with gloo.

    Accelerate's own accumulation is left at 1: the loop counts globally and steers synchronisation itself.
    Raises LaunchError where the launcher asked for several processes and this one is alone: each would train on the
    same data. accelerate 1.15 does that silently for MULTI_CPU configurations (distributed.md section 1).
    """
    if precision not in PRECISIONS:
        raise ValueError(f"trainer.precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision == "fp16" and not torch.cuda.is_available():
        raise ConfigError(["trainer.precision=fp16 needs a GPU and there is none; set trainer.precision=bf16 or fp32"])
    handlers: list[Any] = [
        InitProcessGroupKwargs(timeout=timedelta(minutes=timeout_minutes)),
        DistributedDataParallelKwargs(broadcast_buffers=False),
    ]
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(), mixed_precision=PRECISIONS[precision], kwargs_handlers=handlers
    )
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != asked:
        raise LaunchError(
            f"{asked} processes were asked for, but this one sees {accelerator.num_processes}; "
            f"start with: torchrun --nproc-per-node {asked} launch.py …"
        )
    return accelerator


def early_rank() -> int:
    """This process's rank before any process group exists, from the launcher's environment."""
    return int(os.environ.get("RANK", "0"))


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum over all ranks, in place, without gradient; the tensor itself with one process."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def place_rows(local: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """[num_rows, …]: every rank's `local` at its own `rows`, the same on all ranks; without gradient.

    Summing zero-filled buffers costs twice the traffic of a gather and needs no padding to equal counts; adding
    zeros is exact.
    """
    full = torch.zeros(num_rows, *local.shape[1:], dtype=local.dtype, device=local.device)
    full[rows.to(local.device)] = local.detach()
    return sum_over_ranks(full)


def broadcast_object(value: Any) -> Any:
    """Rank 0's value (anything JSON-like) on all ranks."""
    box = [value]
    if world_size() > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """Every rank's value (anything that can be pickled), by rank, on all ranks."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def any_rank(flag: bool) -> bool:
    """Whether any rank says yes."""
    if world_size() == 1:
        return flag
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    count = torch.tensor([float(flag)], device=device)
    return bool(sum_over_ranks(count).item() > 0)


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


@contextmanager
def main_first() -> Iterator[None]:
    """Rank 0 runs the block first, the others after it."""
    if rank() != 0:
        barrier()
    yield
    if rank() == 0:
        barrier()


def shut_down() -> None:
    """Ends the process group, so that the interpreter does not warn at exit."""
    if dist.is_initialized():
        dist.destroy_process_group()
