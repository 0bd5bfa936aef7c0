"""How the model is spread over processes, as the loop sees it: one process, DDP, FSDP2, or DeepSpeed's ZeRO stages.

All of them share one contract: gradients of several backward passes add up, are averaged over ranks once per update,
and weights and optimizer state can be had whole, by parameter name, so that a checkpoint written under one strategy
continues under another.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rankpo import distributed

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
        return 0.0 if norm is None else float(distributed.whole(norm))

    def step(self) -> None:
        self.optimizer.step()

    # whole tensors: every rank must call these together

    def whole(self, parameter: Tensor) -> Tensor:
        """A parameter or buffer, complete."""
        return distributed.whole(parameter.detach())

    def trained_weights(self) -> dict[str, Tensor]:
        """Complete trained parameters by name: on rank 0, {} elsewhere."""
        return _kept({name: self.whole(parameter) for name, parameter in _each(self.trained)})

    def plain_weights(self) -> dict[str, Tensor] | None:
        """The model's complete state on rank 0's CPU, {} elsewhere; None where the model itself already is complete."""
        return None

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Puts complete weights into the trained parameters."""
        for name, parameter in self.trained.items():
            parameter.copy_(distributed.part_of(weights[name], parameter))

    def optimizer_state(self) -> OptimizerState:
        """The optimizer's state of every trained parameter, complete: on rank 0, {} elsewhere."""
        names = {id(parameter): name for name, parameter in self.trained.items()}
        whole: OptimizerState = {}
        for parameter, values in _inner(self.optimizer).state.items():
            complete = {key: self.whole(v) if isinstance(v, Tensor) else v for key, v in values.items()}
            whole[names[id(parameter)]] = complete
        return _kept(whole)

    def load_optimizer_state(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Puts back what `optimizer_state` gave, by parameter name, into whichever strategy this is."""
        inner = _inner(self.optimizer)
        for name, parameter in self.trained.items():
            if name in state:
                inner.state[parameter] = {key: _beside(value, parameter) for key, value in state[name].items()}


class FullyShardedStrategy(Strategy):
    """FSDP2: parameters, gradients and optimizer state are split over the ranks, and gathered block by block."""

    sharded = True

    def prepare(self, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        plugin: Any = self.accelerator.state.fsdp_plugin
        plugin.transformer_cls_names_to_wrap = repeated_blocks(self.model)
        _keep_in_step(self.model)
        return super().prepare(optimizer)

    def plain_weights(self) -> dict[str, Tensor] | None:
        return _kept({name: self.whole(tensor) for name, tensor in _each(self.model.state_dict())})

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        super().load_weights(weights)
        self.model.reshard()  # what an evaluation before has gathered is out of date


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
            _keep_in_step(self.model)
        self.engine: Any
        self.engine, wrapped = super().prepare(optimizer)
        distributed.build_whole_models()
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
        return _kept({**{name: self.whole(p) for name, p in _each(parameters)}, **buffers})

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
        for name, parameter in _each(self.trained):
            values = {key: safe_get_full_optimizer_state(parameter, key) for key in tensors}
            whole[name] = {**values, **common}
        return _kept(whole if tensors or common else {})

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
        states = _inner(self.optimizer).state
        first: Mapping[str, Any] = next(iter(states.values()), {})
        shaped = [key for key, value in first.items() if isinstance(value, Tensor) and value.dim()]
        return shaped, {key: value for key, value in first.items() if key not in shaped and value is not None}

    def _begin_state(self, example: Mapping[str, Any]) -> None:
        """Makes room for a state like `example` beside each of DeepSpeed's flat parameters."""
        states = _inner(self.optimizer).state
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


def make_strategy(
    accelerator: Accelerator, model: Any, optimizer: torch.optim.Optimizer, max_grad_norm: float | None
) -> Strategy:
    """The strategy that was launched; the model's forward passes are one backbone call each where it is sharded."""
    kinds = {"FSDP": FullyShardedStrategy, "DEEPSPEED": ZeroStrategy}
    return kinds.get(accelerator.distributed_type.value, Strategy)(accelerator, model, optimizer, max_grad_norm)


def unfit(strategy: str, kind: str, loss: Any, adapters: bool, evaluated: bool) -> str | None:
    """Why these do not go together and what does, or None.

    strategy: accelerate's DistributedType; kind: the model's; adapters: whether the reference is the policy with its
    adapters off; evaluated: whether there are eval_datasets.
    """
    if strategy in ("DEEPSPEED-3", "FSDP") and adapters and loss.needs_live_reference(kind):
        return f"{type(loss).__name__} reads the reference's tokens, which split weights do not give; set trainer.reference=live"
    if strategy in ("DEEPSPEED-3", "FSDP") and evaluated and kind == "listwise":
        return (
            "eval_datasets are ranked by a listwise reranker window after window, which split weights cannot; "
            "use accelerate_config/deepspeed_zero2.yaml, or leave eval_datasets out"
        )
    if strategy.startswith("DEEPSPEED") and getattr(loss, "value_max_grad_norm", None) is not None:
        return (
            "loss.value_max_grad_norm clips a part of the gradient by itself, which DeepSpeed cannot; set it to null, or "
            "use accelerate_config/fsdp.yaml"
        )
    return None


def name_of(accelerator: Accelerator) -> str:
    """accelerate's DistributedType, with the stage for ZeRO."""
    name = accelerator.distributed_type.value
    plugin = accelerator.state.deepspeed_plugin
    return f"{name}-{plugin.zero_stage}" if plugin is not None else name


def repeated_blocks(model: nn.Module) -> list[str]:
    """Class names of the blocks a transformer repeats, which are sharded one by one.

    transformers' own list also names embeddings, whose weights an output head may share with them.
    """
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    named = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    return sorted({type(block).__name__ for stack in stacks for block in stack} & named)


def _keep_in_step(model: Any) -> None:
    """One backbone call per forward pass, and as many forward passes in evaluation as the other ranks make."""
    model.chunk_tokens = sys.maxsize
    model.sharded = True


def _each(tensors: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """By name, in the same order on all ranks: gathering is a collective operation."""
    return iter(sorted(tensors.items()))


def _kept(values: Any) -> Any:
    """The values, their tensors on the CPU, on rank 0; {} elsewhere."""
    if distributed.rank() != 0:
        return {}
    return {name: _on_cpu(value) for name, value in values.items()}


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _on_cpu(item) for key, item in value.items()}
    return value.detach().cpu().contiguous() if isinstance(value, Tensor) else value


def _beside(value: Any, parameter: Tensor) -> Any:
    """State as it stands beside its parameter; AdamW's step count, a number in a tensor, stays on the CPU."""
    if not isinstance(value, Tensor) or not value.dim():
        return value
    return distributed.part_of(value, parameter)


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    """torch's optimizer under accelerate's and DeepSpeed's wrappers."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer
