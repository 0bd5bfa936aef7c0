"""vLLM backend in this process instead of transformers' generate: its availability and construction."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

import torch

from rankpo.errors import ConfigError
from rankpo.models.loading import resolve
from rankpo.runs import processes

if TYPE_CHECKING:
    from vllm import LLM


class Weights(Protocol):
    """The keys of a model's config for the source of its weights."""

    @property
    def is_random(self) -> bool: ...
    @property
    def use_peft(self) -> bool: ...
    @property
    def name_or_path(self) -> str | None: ...
    @property
    def load_from(self) -> str | None: ...
    @property
    def revision(self) -> str | None: ...
    @property
    def trust_remote_code(self) -> bool: ...


def choose_backend(asked: str, config: Weights, further: Mapping[str, bool] | None = None) -> str:
    """Returns transformers or vllm; `auto` selects vLLM if there is a GPU and no obstacle.

    config: the model's config. further: further obstacles by name, and whether each applies.
    Raises ConfigError if vLLM is requested and cannot run.
    """
    hindrances = {
        "it is not installed (pip install vllm)": find_spec("vllm") is None,
        "it cannot run random weights": config.is_random,
        "it does not support adapters in training; set model.load_from to a FINAL folder, where they are merged": config.use_peft,
        "it uses several GPUs from one process; start one process and set task.vllm.tensor_parallel_size": (
            processes.world_size() > 1
        ),
        **(further or {}),
    }
    reasons = [reason for reason, holds in hindrances.items() if holds]
    if asked == "vllm" and reasons:
        raise ConfigError([f"task.backend=vllm: {reason}" for reason in reasons])
    usable = not reasons and torch.cuda.is_available()
    return "vllm" if asked == "vllm" or (asked == "auto" and usable) else "transformers"


def open_engine(config: Weights, seed: int, max_model_len: int, arguments: Mapping[str, object]) -> LLM:
    """Opens vllm.LLM with the weights of the model's config. arguments: further arguments, which override ours."""
    from vllm import LLM  # An optional package.

    source = resolve(config.name_or_path or "", config.load_from, config.revision)
    given: dict[str, object] = {
        "model": source.path,
        "trust_remote_code": config.trust_remote_code,
        "seed": seed,
        "max_model_len": max_model_len,
    }
    return LLM(**{**given, **arguments})
