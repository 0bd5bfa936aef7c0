"""Device of a process: CUDA, Apple's GPU (MPS), or the CPU."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from rankpo.errors import ConfigError


def device_kind(environment: Mapping[str, str] = os.environ) -> str:
    """Returns "cuda", "mps" or "cpu": the fastest that this process can use.

    MPS serves one process alone: torch.distributed has no backend for it. ACCELERATE_USE_CPU=true, as
    accelerate_config/cpu.yaml sets it, chooses the CPU.
    """
    if torch.cuda.is_available():
        return "cuda"
    alone = int(environment.get("WORLD_SIZE", "1")) == 1
    on_cpu = environment.get("ACCELERATE_USE_CPU", "false").lower() == "true"
    return "mps" if torch.backends.mps.is_available() and alone and not on_cpu else "cpu"


def check_precision(precision: str, device: str) -> None:
    """Raises ConfigError for a precision that the device does not train in. device: as `device_kind` returns it."""
    if precision == "fp16" and device != "cuda":
        raise ConfigError(["trainer.precision=fp16 needs a GPU and there is none; set trainer.precision=bf16 or fp32"])
    if precision == "bf16" and device == "mps":
        raise ConfigError(["trainer.precision=bf16 is not supported on Apple's GPU; set trainer.precision=fp32"])
