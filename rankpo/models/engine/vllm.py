"""vLLM backend in this process instead of transformers' generate: its availability and construction."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from rankpo.errors import ConfigError

BACKENDS = ("auto", "transformers", "vllm")


def check_backend(backend: str) -> None:
    """Raises ValueError for a name outside BACKENDS."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")


def choose_backend(asked: str, config: Any, further: Mapping[str, bool] | None = None) -> str:
    """Returns transformers or vllm; `auto` selects vLLM if there is a GPU and no obstacle.

    config: the model's config. further: further obstacles by name, and whether each applies.
    Raises ConfigError if vLLM is requested and cannot run.
    """
    import torch

    from rankpo.runs import processes

    hindrances = {
        "it is not installed (pip install vllm)": find_spec("vllm") is None,
        "it loads weights from a folder or hub, and these are random": config.is_random,
        "it does not read adapters of training; give a FINAL folder, where they are merged": config.use_peft,
        "it spreads over GPUs by itself; start one process, with task.vllm.tensor_parallel_size": (
            processes.world_size() > 1
        ),
        **(further or {}),
    }
    reasons = [reason for reason, holds in hindrances.items() if holds]
    if asked == "vllm" and reasons:
        raise ConfigError([f"task.backend=vllm: {reason}" for reason in reasons])
    usable = not reasons and torch.cuda.is_available()
    return "vllm" if asked == "vllm" or (asked == "auto" and usable) else "transformers"


def open_engine(config: Any, seed: int, max_model_len: int, arguments: Mapping[str, Any]) -> Any:
    """Opens vllm.LLM with the weights of the model's config. arguments: further arguments, which win over ours."""
    from vllm import LLM  # An optional package.

    from rankpo.models.loading import resolve

    source = resolve(config.name_or_path or "", config.load_from, config.revision)
    given = {
        "model": source.path,
        "trust_remote_code": config.trust_remote_code,
        "seed": seed,
        "max_model_len": max_model_len,
    }
    return LLM(**{**given, **arguments})
