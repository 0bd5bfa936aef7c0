"""FSDP2 strategy of the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from rankpo.trainers.strategies.base import Strategy, in_order, keep_in_step, on_rank_0

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule


class FullyShardedStrategy(Strategy):
    """FSDP2: ranks shard parameters, gradients and optimizer state, and gather parameters block by block."""

    sharded = True

    def prepare(self, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        plugin: Any = self.accelerator.state.fsdp_plugin
        plugin.transformer_cls_names_to_wrap = repeated_blocks(self.model)
        keep_in_step(self.model)
        return super().prepare(optimizer)

    def plain_weights(self) -> dict[str, Tensor] | None:
        return on_rank_0({name: self.whole(tensor) for name, tensor in in_order(self.model.state_dict())})

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        super().load_weights(weights)
        self._forget_gathered()

    def load_local(self, weights: Mapping[str, Tensor]) -> None:
        super().load_local(weights)
        self._forget_gathered()

    def _forget_gathered(self) -> None:
        cast("FSDPModule", self.model).reshard()  # Parameters that an earlier evaluation gathered are stale.


def repeated_blocks(model: nn.Module) -> list[str]:
    """Returns the class names of a transformer's repeated blocks, the units of sharding.

    The list of transformers also names embeddings, whose weights an output head may share.
    """
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    named = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    return sorted({type(block).__name__ for stack in stacks for block in stack} & named)
