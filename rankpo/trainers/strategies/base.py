"""What the loop asks of a strategy, and its plain form: one process, or DDP.

All strategies share one contract: gradients of several backward passes add up, are averaged over ranks once per update,
and weights and optimizer state can be had whole, by parameter name, so that a checkpoint written under one strategy
continues under another.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rankpo.runs import processes

OptimizerState = dict[str, dict[str, Any]]  # by parameter name, then by the optimizer's own key


class Strategy:
    """One process or DDP: every process holds everything. wrapped: what training calls in place of the model."""

    sharded = False

    def __init__(
        self, accelerator: Accelerator, model: Any, optimizer: torch.optim.Optimizer, max_grad_norm: float | None
    ) -> None:
        self.accelerator = accelerator
        self.model = model
        self.max_grad_norm = max_grad_norm
        self.wrapped: nn.Module
        self.wrapped, self.optimizer = self.prepare(optimizer)
        # by name; kept, since FSDP2 puts gathered tensors into their places for a while
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def prepare(self, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """The wrapped model and optimizer."""
        return self.accelerator.prepare(self.model, optimizer)

    def no_sync(self) -> AbstractContextManager[None]:
        """Backward passes inside add to the gradient of this rank alone."""
        return self.accelerator.no_sync(self.wrapped)

    def backward(self, value: Tensor) -> None:
        self.accelerator.backward(value)

    def clip(self, parameters: list[nn.Parameter], limit: float) -> float:
        """The norm of the whole gradient of these parameters, which is scaled down to `limit`."""
        norm = self.accelerator.clip_grad_norm_(parameters, limit)
        return 0.0 if norm is None else float(processes.whole(norm))

    def scaler_will_skip(self) -> bool:
        """Whether fp16's scaler leaves this update out: a scaled gradient overflowed, and the scale is halved.

        Where halving has brought the scale below 1, the gradient itself is what overflows.
        """
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.get_scale() >= 1

    def step(self) -> None:
        self.optimizer.step()

    # whole tensors: every rank must call these together

    def whole(self, parameter: Tensor) -> Tensor:
        """A parameter or buffer, complete."""
        return processes.whole(parameter.detach())

    def trained_weights(self) -> dict[str, Tensor]:
        """Complete trained parameters by name: on rank 0, {} elsewhere."""
        return on_rank_0({name: self.whole(parameter) for name, parameter in in_order(self.trained)})

    def plain_weights(self) -> dict[str, Tensor] | None:
        """The model's complete state on rank 0's CPU, {} elsewhere; None where the model itself already is complete."""
        return None

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Puts complete weights into the trained parameters."""
        for name, parameter in self.trained.items():
            parameter.copy_(processes.part_of(weights[name], parameter))

    def optimizer_state(self) -> OptimizerState:
        """The optimizer's state of every trained parameter, complete: on rank 0, {} elsewhere."""
        names = {id(parameter): name for name, parameter in self.trained.items()}
        whole: OptimizerState = {}
        for parameter, values in inner_optimizer(self.optimizer).state.items():
            complete = {key: self.whole(v) if isinstance(v, Tensor) else v for key, v in values.items()}
            whole[names[id(parameter)]] = complete
        return on_rank_0(whole)

    def load_optimizer_state(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Puts back what `optimizer_state` gave, by parameter name, into whichever strategy this is."""
        inner = inner_optimizer(self.optimizer)
        for name, parameter in self.trained.items():
            if name in state:
                inner.state[parameter] = {key: _beside(value, parameter) for key, value in state[name].items()}


def keep_in_step(model: Any) -> None:
    """One backbone call per forward pass, and as many forward passes in evaluation as the other ranks make."""
    model.chunk_tokens = sys.maxsize
    model.sharded = True


def in_order(tensors: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """By name, in the same order on all ranks: gathering is a collective operation."""
    return iter(sorted(tensors.items()))


def on_rank_0(values: Any) -> Any:
    """The values, their tensors on the CPU, on rank 0; {} elsewhere."""
    if processes.rank() != 0:
        return {}
    return {name: _on_cpu(value) for name, value in values.items()}


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _on_cpu(item) for key, item in value.items()}
    return value.detach().cpu().contiguous() if isinstance(value, Tensor) else value


def _beside(value: object, parameter: Tensor) -> object:
    """State as it stands beside its parameter; AdamW's step count, a number in a tensor, stays on the CPU."""
    if not isinstance(value, Tensor) or not value.dim():
        return value
    return processes.part_of(value, parameter)


def inner_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """torch's optimizer under accelerate's and DeepSpeed's wrappers."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer
