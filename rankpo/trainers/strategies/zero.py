"""DeepSpeed ZeRO strategy of the training loop, tested with DeepSpeed 0.19."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rankpo.models.base import RankingModel
from rankpo.runs import processes
from rankpo.trainers.strategies.base import OptimizerState, Strategy, in_order, inner_optimizer, keep_in_step, on_rank_0


def _library() -> ModuleType:
    """DeepSpeed, an optional package."""
    import deepspeed

    return deepspeed


class ZeroStrategy(Strategy):
    """DeepSpeed ZeRO-1, 2, 3: ranks shard the optimizer state, then also gradients, then also parameters.

    DeepSpeed's own accumulation stays at 1. `no_sync` sets the accumulation boundary: a step follows the last backward.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: RankingModel,
        optimizer: torch.optim.Optimizer,
        max_grad_norm: float | None,
    ) -> None:
        plugin: Any = accelerator.state.deepspeed_plugin
        self.sharded = plugin.zero_stage == 3
        plugin.deepspeed_config["gradient_clipping"] = max_grad_norm or 0.0  # DeepSpeed reads 0 as no clipping.
        super().__init__(accelerator, model, optimizer, max_grad_norm)

    def prepare(self, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        if self.sharded:
            keep_in_step(self.model)
        self.engine: Any
        self.engine, wrapped = super().prepare(optimizer)
        processes.build_whole_models()
        return self.engine, wrapped

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        self.engine.set_gradient_accumulation_boundary(is_boundary=False)
        try:
            yield
        finally:
            self.engine.set_gradient_accumulation_boundary(is_boundary=True)

    def backward(self, value: Tensor) -> None:
        self.engine.backward(value)

    def clip(self, parameters: list[nn.Parameter], limit: float) -> float:
        """Steps and returns the global gradient norm: DeepSpeed computes the norm and clips only inside its step."""
        self.engine.set_gradient_accumulation_boundary(is_boundary=True)
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        return 0.0 if norm is None else float(norm)

    def step(self) -> None:
        """Does nothing, because `clip` steps."""

    def whole(self, parameter: Tensor) -> Tensor:
        if parameter.requires_grad:  # The float32 master copy is more precise than a bfloat16 parameter.
            return _library().utils.safe_get_full_fp32_param(parameter)
        if not hasattr(parameter, "ds_id"):
            return parameter.detach()
        with _library().zero.GatheredParameters([parameter]):
            return parameter.detach().clone()

    def plain_weights(self) -> dict[str, Tensor] | None:
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        buffers = {name: tensor for name, tensor in self.model.state_dict().items() if name not in parameters}
        return on_rank_0({**{name: self.whole(p) for name, p in in_order(parameters)}, **buffers})

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self.trained.items():
            value = weights[name].to(self.accelerator.device)
            _library().utils.safe_set_full_fp32_param(parameter, value)  # This sets the optimizer's master copy.
            if hasattr(parameter, "ds_id"):
                with _library().zero.GatheredParameters([parameter], modifier_rank=0):
                    parameter.copy_(value)
            else:
                parameter.copy_(value)

    def optimizer_state(self) -> OptimizerState:
        tensors, common = self._state_keys()
        if tensors:
            self._link_state()
        whole: OptimizerState = {}
        for name, parameter in in_order(self.trained):
            values = {key: _library().utils.safe_get_full_optimizer_state(parameter, key) for key in tensors}
            whole[name] = {**values, **common}
        return on_rank_0(whole if tensors or common else {})

    def load_optimizer_state(self, state: Mapping[str, Mapping[str, object]]) -> None:
        if not state:
            return
        self._begin_state(next(iter(state.values())))
        for name, parameter in self.trained.items():
            for key, value in state[name].items():
                if isinstance(value, Tensor) and value.dim():
                    _library().utils.safe_set_full_optimizer_state(parameter, value.to(self.accelerator.device), key)

    def _flat_parameters(self) -> list[Tensor]:
        """Returns the flat tensors that the optimizer steps on: this rank's shards, joined per parameter group."""
        zero = self.engine.optimizer
        return list(getattr(zero, "fp32_partitioned_groups_flat", None) or zero.single_partition_of_fp32_groups)

    def _state_keys(self) -> tuple[list[str], dict[str, object]]:
        """Returns the names of parameter-shaped state, and the scalar state that all share (AdamW's step count)."""
        states = inner_optimizer(self.optimizer).state
        first: Mapping[str, object] = next(iter(states.values()), {})
        shaped = [key for key, value in first.items() if isinstance(value, Tensor) and value.dim()]
        return shaped, {key: value for key, value in first.items() if key not in shaped and value is not None}

    def _begin_state(self, example: Mapping[str, object]) -> None:
        """Allocates state like `example` for each of DeepSpeed's flat parameters."""
        states = inner_optimizer(self.optimizer).state
        for flat in self._flat_parameters():
            states[flat] = {
                # AdamW increments the step count in place, so each parameter needs its own tensor.
                key: (torch.zeros_like(flat) if value.dim() else value.clone()) if isinstance(value, Tensor) else value
                for key, value in example.items()
            }
        self._link_state()

    def _link_state(self) -> None:
        """Links each parameter to its part of the optimizer state under ZeRO-1 and 2.

        DeepSpeed 0.19 links after the first step of the first parameter group, when the other groups have no state.
        """
        zero = self.engine.optimizer
        if hasattr(zero, "_hp_optimizer_states_linked"):
            zero._hp_optimizer_states_linked = False
            zero._lazy_init_hp_params_optimizer_state()
