"""Strategy: the interface of distributed strategies, and its implementation for one process or DDP.

All strategies accumulate the gradients of several backward passes, average them over ranks once per update, and return
complete weights and optimizer state by parameter name, so that one strategy can continue from another's checkpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TypeVar, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rankpo.models.base import RankingModel
from rankpo.runs import processes

Value = TypeVar("Value")
OptimizerState = dict[str, dict[str, object]]  # The keys are the parameter name, then the optimizer's key.


class Strategy:
    """One process or DDP. Every process holds all weights. wrapped: the module that training calls."""

    sharded = False

    def __init__(
        self,
        accelerator: Accelerator,
        model: RankingModel,
        optimizer: torch.optim.Optimizer,
        max_grad_norm: float | None,
    ) -> None:
        self.accelerator = accelerator
        self.model = model
        self.max_grad_norm = max_grad_norm
        self.wrapped: nn.Module
        self.wrapped, self.optimizer = self.prepare(optimizer)
        # This keeps the parameters by name, since FSDP2 temporarily replaces them by gathered tensors.
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def prepare(self, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Returns the wrapped model and optimizer."""
        return self.accelerator.prepare(self.model, optimizer)

    def no_sync(self) -> AbstractContextManager[None]:
        """Returns a context in which backward passes accumulate this rank's gradient without synchronisation."""
        return self.accelerator.no_sync(self.wrapped)

    def backward(self, value: Tensor) -> None:
        self.accelerator.backward(value)

    def clip(self, parameters: list[nn.Parameter], limit: float) -> float:
        """Returns the gradient norm of these parameters and scales the gradient down to the norm `limit`."""
        norm = self.accelerator.clip_grad_norm_(parameters, limit)
        return 0.0 if norm is None else float(processes.whole(norm))

    def scaler_will_skip(self) -> bool:
        """Whether fp16's scaler skips this update and halves the scale, because a scaled gradient overflowed.

        If the scale is below 1, the unscaled gradient overflows.
        """
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.get_scale() >= 1

    def step(self) -> None:
        self.optimizer.step()

    # The following methods return whole tensors, so all ranks must call them together.

    def whole(self, parameter: Tensor) -> Tensor:
        """Returns the complete parameter or buffer."""
        return processes.whole(parameter.detach())

    def trained_weights(self) -> dict[str, Tensor]:
        """Returns the complete trained parameters by name on rank 0, {} elsewhere."""
        return on_rank_0({name: self.whole(parameter) for name, parameter in in_order(self.trained)})

    def plain_weights(self) -> dict[str, Tensor] | None:
        """Returns the complete state on rank 0's CPU, {} elsewhere; None if the model itself is complete."""
        return None

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Loads complete weights into the trained parameters."""
        for name, parameter in self.trained.items():
            parameter.copy_(processes.part_of(weights[name], parameter))

    @torch.no_grad()
    def local_weights(self) -> dict[str, Tensor]:
        """Returns copies of this rank's part of the trained parameters by name."""
        return {name: parameter.detach().clone() for name, parameter in self.trained.items()}

    @torch.no_grad()
    def load_local(self, weights: Mapping[str, Tensor]) -> None:
        """Loads this rank's part of the trained parameters, in the form of `local_weights`."""
        for name, parameter in self.trained.items():
            parameter.copy_(weights[name])

    def optimizer_state(self) -> OptimizerState:
        """Returns the complete optimizer state of every trained parameter on rank 0, {} elsewhere."""
        names = {id(parameter): name for name, parameter in self.trained.items()}
        whole: OptimizerState = {}
        for parameter, values in inner_optimizer(self.optimizer).state.items():
            complete = {key: self.whole(v) if isinstance(v, Tensor) else v for key, v in values.items()}
            whole[names[id(parameter)]] = complete
        return on_rank_0(whole)

    def load_optimizer_state(self, state: Mapping[str, Mapping[str, object]]) -> None:
        """Restores the result of `optimizer_state`, of any strategy, by parameter name."""
        inner = inner_optimizer(self.optimizer)
        for name, parameter in self.trained.items():
            if name in state:
                inner.state[parameter] = {key: _beside(value, parameter) for key, value in state[name].items()}


def keep_in_step(model: RankingModel) -> None:
    """Makes each forward pass one backbone call, and equal numbers of evaluation passes on all ranks."""
    model.chunk_tokens = sys.maxsize
    model.sharded = True


def in_order(tensors: Mapping[str, Value]) -> Iterator[tuple[str, Value]]:
    """Yields the tensors sorted by name, since gathering is a collective that needs one order on all ranks."""
    return iter(sorted(tensors.items(), key=lambda item: item[0]))


def on_rank_0(values: dict[str, Value]) -> dict[str, Value]:
    """Returns the values with tensors on the CPU on rank 0, {} elsewhere."""
    if processes.rank() != 0:
        return {}
    return {name: cast("Value", _on_cpu(value)) for name, value in values.items()}


def _on_cpu(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _on_cpu(item) for key, item in value.items()}
    return value.detach().cpu().contiguous() if isinstance(value, Tensor) else value


def _beside(value: object, parameter: Tensor) -> object:
    """Moves state to its parameter's device; AdamW's scalar step count stays on the CPU."""
    if not isinstance(value, Tensor) or not value.dim():
        return value
    return processes.part_of(value, parameter)


def inner_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Returns torch's optimizer inside the wrappers of accelerate and DeepSpeed."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer
