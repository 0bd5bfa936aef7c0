"""DeepSpeed's ZeRO stages as a strategy of the loop; tested with DeepSpeed 0.19."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rankpo.runs import processes
from rankpo.trainers.strategies.base import OptimizerState, Strategy, in_order, inner_optimizer, keep_in_step, on_rank_0


class ZeroStrategy(Strategy):
    """DeepSpeed ZeRO-1, 2, 3: optimizer state, then gradients, then parameters are split over the ranks.

    DeepSpeed's own accumulation stays at 1, and its boundary is set by `no_sync`: a step follows the last backward.
    """

    def __init__(
        self, accelerator: Accelerator, model: Any, optimizer: torch.optim.Optimizer, max_grad_norm: float | None
    ) -> None:
        plugin: Any = accelerator.state.deepspeed_plugin
        self.sharded = plugin.zero_stage == 3
        plugin.deepspeed_config["gradient_clipping"] = max_grad_norm or 0.0  # 0 is DeepSpeed's word for never
        super().__init__(accelerator, model, optimizer, max_grad_norm)

    def prepare(self, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
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
        """The norm of the whole gradient. DeepSpeed knows it, and clips by it, only while it steps: so it steps here."""
        self.engine.set_gradient_accumulation_boundary(is_boundary=True)
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        return 0.0 if norm is None else float(norm)

    def step(self) -> None:
        """Done by `clip`."""

    def whole(self, parameter: Tensor) -> Tensor:
        import deepspeed
        from deepspeed.utils import safe_get_full_fp32_param

        if parameter.requires_grad:  # the master copy, which in bfloat16 has more digits than the parameter
            return safe_get_full_fp32_param(parameter)
        if not hasattr(parameter, "ds_id"):
            return parameter.detach()
        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()

    def plain_weights(self) -> dict[str, Tensor] | None:
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        buffers = {name: tensor for name, tensor in self.model.state_dict().items() if name not in parameters}
        return on_rank_0({**{name: self.whole(p) for name, p in in_order(parameters)}, **buffers})

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        import deepspeed
        from deepspeed.utils import safe_set_full_fp32_param

        for name, parameter in self.trained.items():
            value = weights[name].to(self.accelerator.device)
            safe_set_full_fp32_param(parameter, value)  # the optimizer's copy; below, the one that computes
            if hasattr(parameter, "ds_id"):
                with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                    parameter.copy_(value)
            else:
                parameter.copy_(value)

    def optimizer_state(self) -> OptimizerState:
        from deepspeed.utils import safe_get_full_optimizer_state

        tensors, common = self._state_keys()
        if tensors:
            self._link_state()
        whole: OptimizerState = {}
        for name, parameter in in_order(self.trained):
            values = {key: safe_get_full_optimizer_state(parameter, key) for key in tensors}
            whole[name] = {**values, **common}
        return on_rank_0(whole if tensors or common else {})

    def load_optimizer_state(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        if not state:
            return
        self._begin_state(next(iter(state.values())))
        for name, parameter in self.trained.items():
            for key, value in state[name].items():
                if isinstance(value, Tensor) and value.dim():
                    safe_set_full_optimizer_state(parameter, value.to(self.accelerator.device), key)

    def _flat_parameters(self) -> list[Tensor]:
        """This rank's parts of all parameters, joined by group: what the optimizer steps on."""
        zero = self.engine.optimizer
        return list(getattr(zero, "fp32_partitioned_groups_flat", None) or zero.single_partition_of_fp32_groups)

    def _state_keys(self) -> tuple[list[str], dict[str, Any]]:
        """Names of the state that has a parameter's shape, and what is one number for all (AdamW's step count)."""
        states = inner_optimizer(self.optimizer).state
        first: Mapping[str, Any] = next(iter(states.values()), {})
        shaped = [key for key, value in first.items() if isinstance(value, Tensor) and value.dim()]
        return shaped, {key: value for key, value in first.items() if key not in shaped and value is not None}

    def _begin_state(self, example: Mapping[str, object]) -> None:
        """Makes room for a state like `example` beside each of DeepSpeed's flat parameters."""
        states = inner_optimizer(self.optimizer).state
        for flat in self._flat_parameters():
            states[flat] = {
                # a step count is counted up in place: each needs its own
                key: (torch.zeros_like(flat) if value.dim() else value.clone()) if isinstance(value, Tensor) else value
                for key, value in example.items()
            }
        self._link_state()

    def _link_state(self) -> None:
        """Tells each parameter where its part of the state is, under ZeRO-1 and 2.

        DeepSpeed 0.19 does so after the first step of the first parameter group, when the others have none yet.
        """
        zero = self.engine.optimizer
        if hasattr(zero, "_hp_optimizer_states_linked"):
            zero._hp_optimizer_states_linked = False
            zero._lazy_init_hp_params_optimizer_state()
