"""Selects the distributed strategy, and states which losses and models the strategy does not support."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from rankpo.losses.base import Loss
from rankpo.models.base import RankingModel
from rankpo.trainers.strategies.base import Strategy
from rankpo.trainers.strategies.fully_sharded import FullyShardedStrategy
from rankpo.trainers.strategies.zero import ZeroStrategy


def make_strategy(
    accelerator: Accelerator, model: RankingModel, optimizer: torch.optim.Optimizer, max_grad_norm: float | None
) -> Strategy:
    """Builds the strategy that the launcher selected.

    If the strategy shards weights, it also makes `model` run each forward pass as one backbone call, because all ranks
    gather the weights in each call.
    """
    kinds = {"FSDP": FullyShardedStrategy, "DEEPSPEED": ZeroStrategy}
    return kinds.get(accelerator.distributed_type.value, Strategy)(accelerator, model, optimizer, max_grad_norm)


def unfit(strategy: str, gives: frozenset[str], loss: Loss, evaluated: bool, ema: bool = False) -> str | None:
    """Returns why this combination is unsupported and what to use instead, or None if it is supported.

    strategy: the result of `name_of`. gives: the outputs of the model's kind. evaluated: True if the run has
    eval_datasets. ema: True if the run averages its weights.
    """
    if strategy in ("DEEPSPEED-3", "FSDP") and evaluated and "lists" in gives:
        return (
            "a listwise reranker cannot rank eval_datasets in windows with sharded weights; use "
            "accelerate_config/deepspeed_zero2.yaml, or remove eval_datasets"
        )
    if strategy.startswith("DEEPSPEED") and ema:
        return (
            "trainer.ema averages the weights of each process, of which DeepSpeed keeps copies of its own; set it to null, "
            "or use accelerate_config/fsdp.yaml"
        )
    if strategy.startswith("DEEPSPEED") and loss.value_max_grad_norm is not None:
        return (
            "loss.value_max_grad_norm clips a part of the gradient separately, which DeepSpeed cannot; set it to null, or "
            "use accelerate_config/fsdp.yaml"
        )
    return None


def name_of(accelerator: Accelerator) -> str:
    """Returns the name of accelerate's DistributedType, and for DeepSpeed also the ZeRO stage: "DEEPSPEED-3"."""
    name = accelerator.distributed_type.value
    plugin = accelerator.state.deepspeed_plugin
    return f"{name}-{plugin.zero_stage}" if plugin is not None else name
