"""Processes of a run. Only this module imports torch.distributed and constructs an Accelerator."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    FullyShardedDataParallelPlugin,
    InitProcessGroupKwargs,
)
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from rankpo.errors import ConfigError
from rankpo.runs import threads
from rankpo.runs.devices import check_precision, device_kind
from rankpo.runs.launcher import (
    PRECISIONS,
    contradiction,
    precision_asked,
    processes_asked,
    settle_auto,
    strategy_asked,
)


class LaunchError(RuntimeError):
    """Raised if the running processes differ from the requested ones."""


def settled_precision(asked: str) -> str:
    """Returns trainer.precision. "auto" becomes the precision of `accelerate launch`, or else bf16 on a GPU that supports
    it, or else fp32."""
    if asked != "auto":
        return asked
    on_device = "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"
    return precision_asked(os.environ) or on_device


def make_accelerator(precision: str = "fp32", timeout_minutes: float = 30) -> Accelerator:
    """The Accelerator of this run, on CUDA or Apple's GPU where there is one, else on CPUs with gloo.

    Accelerate's and DeepSpeed's own accumulation are left at 1: the loop counts globally and steers synchronisation
    itself. Raises LaunchError where fewer processes work together than were asked for, or with another strategy: each
    would train on the same data.
    """
    precision = settled_precision(precision)
    if precision not in PRECISIONS:
        raise ValueError(f"trainer.precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    check_precision(precision, device_kind())
    if problem := contradiction(os.environ, precision):
        raise ConfigError([problem])
    strategy = strategy_asked(os.environ)
    if precision == "fp16" and strategy == "DEEPSPEED":
        raise ConfigError(["trainer.precision=fp16 does not go with DeepSpeed, whose scale is its own; set bf16"])
    processes = processes_asked(os.environ)
    if processes > 1 and int(os.environ.get("WORLD_SIZE", "1")) < processes:
        raise LaunchError(
            f"{processes} processes were asked for and this one is alone; start with: "
            f"torchrun --nproc-per-node {processes} launch.py …"
        )
    if precision == "bf16" and torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")  # TF32 for products that autocast keeps in float32.
    accelerator = _accelerator(strategy, PRECISIONS[precision], timedelta(minutes=timeout_minutes))
    if accelerator.num_processes != processes:
        raise LaunchError(f"{processes} processes were asked for, but this one sees {accelerator.num_processes}")
    if strategy is not None and accelerator.distributed_type.value != strategy:
        raise LaunchError(f"{strategy} was asked for, but accelerate made {accelerator.distributed_type.value}")
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise LaunchError("fsdp_version must be 2, as in accelerate_config/fsdp.yaml")
    if (steps := _accumulation(accelerator)) != 1:
        raise LaunchError(
            f"accelerate's gradient_accumulation_steps must be 1, got {steps}: the loop accumulates itself, and each "
            "gradient would be divided twice; trainer.max_tokens says what one device holds at once"
        )
    return accelerator


def _accumulation(accelerator: Accelerator) -> int:
    """The divisor that accelerate or DeepSpeed applies to each gradient."""
    plugin = accelerator.state.deepspeed_plugin
    asked = 1 if plugin is None else plugin.deepspeed_config.get("gradient_accumulation_steps", 1)
    return max(accelerator.gradient_accumulation_steps, 1 if asked == "auto" else int(asked))


def _accelerator(strategy: str | None, mixed_precision: str, timeout: timedelta) -> Accelerator:
    """An Accelerator, with workarounds for FSDP2 and DeepSpeed on CPUs with accelerate 1.15.

    Observed behaviour (tests/distributed/test_shims.py fails if it changes):
    - FSDP on CPUs: Accelerator(cpu=True) gives DDP, Accelerator() one process each that knows of no other. So cpu=True
      makes the group, then type and plugin are set, which `prepare` reads.
    - DeepSpeed on CPUs: Accelerator(cpu=True) gives DDP, Accelerator() alone asks for nccl. So gloo is named.
    - DeepSpeed on CPUs compiles a reduction through shared memory when it starts: minutes on a busy machine, and a
      process that was killed in them leaves a lock on which every later one waits for ever. So gloo does it.
    - DeepSpeed anywhere: `prepare` wants the batch size of a torch DataLoader, and there is none. So one is written
      into its configuration; it scales nothing while accumulation is 1.
    """
    cpu = device_kind() == "cpu"
    group: dict[str, object] = {"timeout": timeout}
    if cpu:  # accelerate imports DeepSpeed where it is installed, and DeepSpeed looks for a GPU and says so
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if strategy == "DEEPSPEED":
        if cpu:
            import deepspeed

            group["backend"] = "gloo"
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        accelerator = Accelerator(mixed_precision=mixed_precision, kwargs_handlers=[InitProcessGroupKwargs(**group)])
        settle_auto(accelerator.state.deepspeed_plugin.deepspeed_config)
        build_whole_models()
        return accelerator
    handlers: list[object] = [InitProcessGroupKwargs(**group), DistributedDataParallelKwargs(broadcast_buffers=False)]
    accelerator = Accelerator(cpu=cpu, mixed_precision=mixed_precision, kwargs_handlers=handlers)
    if strategy == "FSDP" and cpu:
        plugin = FullyShardedDataParallelPlugin()  # It reads the launcher's environment variables.
        if mixed_precision != "no":
            plugin.set_mixed_precision(mixed_precision)
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin
    return accelerator


def thread_advice() -> str | None:
    """Returns one line if this machine's processes of the run have more threads than cores are free, else None."""
    own = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return threads.advice(torch.get_num_threads(), own, threads.cores(), threads.load())


def build_whole_models() -> None:
    """Makes transformers build unsharded models under ZeRO-3, for which `zero3_init_flag: false` is not enough.

    Accelerate registers ZeRO-3 with transformers whenever it makes an Accelerator or prepares a model. After that, new
    models are sharded at construction, and could not be exported or copied as a reference.
    """
    from transformers.integrations import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()


@contextmanager
def own_state(
    values: Sequence[Mapping[str, object]] | None = None,
) -> Iterator[Callable[[], list[Mapping[str, object]]]]:
    """Replaces accelerate's global state inside the block, and restores the state of the caller afterwards.

    values: the state inside, as returned by the yielded function in an earlier block; None starts with a new state.
    """
    shared = [state._shared_state for state in (PartialState, AcceleratorState, GradientState)]

    def copies() -> list[Mapping[str, object]]:
        return [dict(state) for state in shared]

    def put(states: Sequence[Mapping[str, object]]) -> None:
        for state, content in zip(shared, states, strict=True):
            state.clear()
            state.update(content)

    before = copies()
    put(values or [{} for _ in shared])
    try:
        yield copies
    finally:
        put(before)


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
    """Returns [num_rows, …] with every rank's `local` at its `rows`, equal on all ranks and without gradient.

    Summing zero-filled buffers costs twice the traffic of a gather and needs no padding to equal counts; adding
    zeros is exact.
    """
    full = torch.zeros(num_rows, *local.shape[1:], dtype=local.dtype, device=local.device)
    full[rows.to(local.device)] = local.detach()
    return sum_over_ranks(full)


def broadcast_object(value: object) -> Any:
    """Rank 0's value (anything JSON-like) on all ranks."""
    box = [value]
    if world_size() > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """Every rank's value (anything that can be pickled), by rank, on all ranks."""
    if world_size() == 1:
        return [value]
    values: list[object] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def any_rank(flag: bool) -> bool:
    """Whether the value is true on any rank."""
    if world_size() == 1:
        return flag
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    count = torch.tensor([float(flag)], device=device)
    return bool(sum_over_ranks(count).item() > 0)


def whole(tensor: Tensor) -> Tensor:
    """Gathers a tensor that FSDP2 shards; returns others unchanged. All ranks must call it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_of(value: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a complete tensor, if `like` is split over ranks; on its device."""
    value = value.to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements) if isinstance(like, DTensor) else value


class Shardable(nn.Module):
    """A module whose parameters can be sharded over ranks. sharded: whether they are."""

    sharded: bool = False


@contextmanager
def in_step(model: Shardable, make_idle: Callable[[], object]) -> Iterator[None]:
    """Makes the number of forward calls of `model` inside the block equal on all ranks, by idle calls.

    Sharded parameters are gathered in each forward pass, so a rank without work would block the others. make_idle: makes
    the arguments of the smallest call. Has no effect if parameters are not sharded.
    """
    if not model.sharded:
        yield
        return

    def announce(*_: object) -> None:
        any_rank(True)

    # This hook must precede FSDP2's: the ranks first agree that one has work, and then gather.
    hook = model.register_forward_pre_hook(announce, prepend=True)
    try:
        yield
    finally:
        hook.remove()
    with torch.no_grad():
        idle = make_idle()
        while any_rank(False):
            model(idle)


@contextmanager
def units_in_step(model: Shardable, idle: Callable[[], object]) -> Iterator[Callable[[], object]]:
    """Like `in_step`, for units of several forward calls. The yielded function must be called before each unit.

    idle: the smallest unit, with the same forward calls in the same order.
    """
    if not model.sharded:
        yield lambda: None
        return
    yield lambda: any_rank(True)
    while any_rank(False):
        idle()


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def shut_down() -> None:
    """Ends the process group, so that the interpreter does not warn at exit."""
    if dist.is_initialized():
        dist.destroy_process_group()
