"""The processes of a run: the Accelerator, and collectives that also work without a process group.

Only this module imports torch.distributed and constructs an Accelerator.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from functools import partial
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
from rankpo.runs.devices import check_precision, device_kind
from rankpo.runs.launcher import (
    PRECISIONS,
    contradiction,
    processes_asked,
    settle_auto,
    strategy_asked,
)
from rankpo.runs.precision import settled_precision


class LaunchError(RuntimeError):
    """Raised if the processes that run differ from the launcher's request, in number, strategy or settings."""


def make_accelerator(precision: str = "fp32", timeout_minutes: float = 30) -> Accelerator:
    """Builds the Accelerator of this run, on a GPU (CUDA or Apple) if one is available, and else on CPUs with gloo.

    The accumulation steps of accelerate and DeepSpeed must be 1, because the training loop accumulates gradients and
    controls their synchronisation. The number of processes and the strategy must equal the launcher's request, because
    processes that do not form one group would each train on the same data. Raises LaunchError otherwise. Raises
    ValueError or ConfigError if the precision is unknown, or unsupported by the device or the launcher's settings.
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
        torch.set_float32_matmul_precision("high")  # Use TF32 for the matrix products that autocast leaves in float32.
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
    """Returns the number of accumulation steps, by which accelerate or DeepSpeed would divide each gradient."""
    plugin = accelerator.state.deepspeed_plugin
    asked = 1 if plugin is None else plugin.deepspeed_config.get("gradient_accumulation_steps", 1)
    return max(accelerator.gradient_accumulation_steps, 1 if asked == "auto" else int(asked))


def _accelerator(strategy: str | None, mixed_precision: str, timeout: timedelta) -> Accelerator:
    """Builds an Accelerator. Contains workarounds for FSDP2 and DeepSpeed in accelerate 1.15, mostly on CPUs.

    The workarounds address this behaviour (tests/distributed/test_shims.py fails if it changes):
    - FSDP on CPUs: Accelerator(cpu=True) selects DDP, and Accelerator() creates no process group. This function builds
      the group with cpu=True, and then sets the distributed type and the plugin, which `prepare` reads.
    - FSDP on any device: `autocast` makes an AcceleratorState, which sets the distributed type back to that of DDP. A rank
      that uses autocast before `prepare` would prepare for DDP, and wait for ever. This function keeps the type.
    - DeepSpeed on CPUs: Accelerator(cpu=True) selects DDP, and Accelerator() nccl; the backend is set to gloo.
    - DeepSpeed on CPUs compiles a shared-memory reduction at start, for minutes; the lock of a process that was killed
      meanwhile would stop all later ones for ever. This function disables the reduction, so that gloo is used.
    - DeepSpeed on any device: `prepare` requires a DataLoader's batch size. `settle_auto` sets 1, which has no effect.
    """
    cpu = device_kind() == "cpu"
    group: dict[str, object] = {"timeout": timeout}
    # If DeepSpeed is installed, accelerate imports it. This variable stops DeepSpeed from logging its search for a GPU.
    if cpu:
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
        # The constructor of the plugin reads the environment variables of `accelerate launch`.
        plugin = FullyShardedDataParallelPlugin()
        if mixed_precision != "no":
            plugin.set_mixed_precision(mixed_precision)
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin
    if strategy == "FSDP":
        accelerator.autocast = partial(_autocast, accelerator, accelerator.autocast)  # type: ignore[method-assign]
    return accelerator


@contextmanager
def _autocast(accelerator: Accelerator, inner: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    kept = accelerator.distributed_type
    with inner():
        accelerator.state.distributed_type = kept
        yield


def build_whole_models() -> None:
    """Makes transformers build unsharded models under ZeRO-3, for which `zero3_init_flag: false` is not enough.

    Accelerate registers ZeRO-3 with transformers whenever it builds an Accelerator or prepares a model. Transformers
    would then shard new models at construction, and a sharded model cannot be exported or copied as a reference model.
    """
    from transformers.integrations import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()


@contextmanager
def own_state(
    values: Sequence[Mapping[str, object]] | None = None,
) -> Iterator[Callable[[], list[Mapping[str, object]]]]:
    """Replaces accelerate's global state inside the block, and restores the state of the caller afterwards.

    values: the state to use inside the block; None starts with an empty state. The yielded function returns a copy of
    the current state, which a later block can take as `values`.
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
    """Sums a tensor over all ranks in place and returns it. The operation has no gradient."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def place_rows(local: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """Gathers the rows of all ranks into one tensor [num_rows, …], equal on all ranks and without gradient.

    local: the rows of this rank. rows: their indices in the result; no index may occur twice. The implementation sums
    zero-filled tensors over the ranks, which is exact. The sum costs twice the traffic of a gather, but a gather would
    require padding to equal numbers of rows.
    """
    full = torch.zeros(num_rows, *local.shape[1:], dtype=local.dtype, device=local.device)
    full[rows.to(local.device, non_blocking=True)] = local.detach()
    return sum_over_ranks(full)


def broadcast_object(value: object) -> Any:
    """Returns the value of rank 0 on all ranks. value: any JSON-like object."""
    box = [value]
    if world_size() > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """Returns the values of all ranks as a list, in rank order, on every rank. value: any picklable object."""
    if world_size() == 1:
        return [value]
    values: list[object] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def any_rank(flag: bool) -> bool:
    """Returns True on all ranks if `flag` is true on at least one. This call is a collective."""
    if world_size() == 1:
        return flag
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    count = torch.tensor([float(flag)], device=device)
    return bool(sum_over_ranks(count).item() > 0)


def whole(tensor: Tensor) -> Tensor:
    """Gathers a tensor that FSDP2 shards, and returns any other unchanged. All ranks must call it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_of(value: Tensor, like: Tensor) -> Tensor:
    """Moves a full tensor to the device of `like`, and shards it in the same way if `like` is sharded."""
    value = value.to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements) if isinstance(like, DTensor) else value


class Shardable(nn.Module):
    """A module whose parameters can be sharded over ranks. sharded: True if they are sharded."""

    sharded: bool = False


@contextmanager
def in_step(model: Shardable, make_idle: Callable[[], object]) -> Iterator[None]:
    """Makes all ranks run the same number of forward calls of `model`.

    With sharded parameters, each forward call is a collective, and a rank that runs fewer calls would block the others.
    At the end of the block, a rank with fewer calls runs idle calls until all ranks are done. The context manager has
    no effect if the parameters are not sharded. make_idle: returns the input of the cheapest call.
    """
    if not model.sharded:
        yield
        return

    def announce(*_: object) -> None:
        any_rank(True)

    # This hook must run before FSDP2's hook: a rank announces its call first, and then all ranks gather parameters.
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
    """Makes all ranks run the same number of units, where a unit is a fixed sequence of forward calls. See `in_step`.

    The caller must call the yielded function before each unit. idle: runs the cheapest unit; it must run the same
    forward calls in the same order as any other unit.
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
    """Destroys the process group; otherwise, torch prints a warning when the interpreter exits."""
    if dist.is_initialized():
        dist.destroy_process_group()
