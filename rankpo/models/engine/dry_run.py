"""Dry runs: a forward and backward pass under fake tensors, which shows the memory of activations without using it.

A fake tensor has a shape, a type and a device, but no data. An operation that needs the data of a device tensor, such as
`.item()`, fails on it, so a dry run also shows that a pass never waits for its device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from rankpo.data.batch import select
from rankpo.models.engine.live_bytes import LiveBytes
from rankpo.types import Sequences


@dataclass(frozen=True)
class Pass:
    """What a dry run computes. autocast: the context of the forward pass. referenced: whether a reference model of the
    same size computes the sequences too, without gradient, before the backward pass."""

    autocast: Callable[[], AbstractContextManager[None]] = nullcontext
    referenced: bool = False


def activation_bytes(model: nn.Module, sequences: Sequences, given: Pass) -> int:
    """Returns the most bytes that a forward and backward pass over these sequences holds besides weights and gradients.

    The model and its gradients are not changed. Raises RuntimeError for a model that reads the values of device tensors,
    such as one with sparse matrices; `measured_bytes` measures it.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with _unpacked_layers(model, mode):
        return _peak(model, _stand_ins(model, mode), sequences, given)


def measured_bytes(model: nn.Module, sequences: Sequences, given: Pass) -> int:
    """As `activation_bytes`, from a real pass, which takes time and memory."""
    with torch.random.fork_rng():
        return _peak(model, _stand_ins(model, None), sequences, given)


class _Passes(nn.Module):
    """A forward and backward pass as one call, because gradient checkpointing reads the weights in the backward pass."""

    def __init__(self, model: nn.Module, given: Pass) -> None:
        super().__init__()
        self.model = model
        self.given = given

    def forward(self, sequences: Sequences) -> None:
        with self.given.autocast():
            output = self.model(sequences)
            if self.given.referenced:
                with torch.no_grad():
                    self.model(sequences)
        torch.autograd.backward([value.float().sum() for value in _tensors(output) if value.requires_grad])


def _peak(model: nn.Module, state: Mapping[str, Tensor], sequences: Sequences, given: Pass) -> int:
    gradients = [value.grad for value in state.values() if value.grad is not None]
    eager = torch.compiler.set_stance("force_eager")  # A body that will be compiled later must not be compiled here.
    with eager, LiveBytes([*state.values(), *gradients]) as counter:
        functional_call(_Passes(model, given), {f"model.{name}": value for name, value in state.items()}, (sequences,))
    return counter.peak


def repeated(sequences: Sequences, tokens: int) -> Sequences:
    """Returns sequences with about `tokens` tokens in all: the longest of the given ones, again and again.

    The result holds at least one sequence. Shared prompts of completions are not kept, so each sequence is computed as a
    whole; the roles of texts, which stand in the same field, are kept.
    """
    order = np.argsort(-sequences.lengths.numpy(), kind="stable")
    sizes = sequences.lengths.numpy()[order]
    order, sizes = order[sizes > 0], sizes[sizes > 0]
    copies = max(1, -(-tokens // max(1, int(sizes.sum()))))
    rows = np.tile(order, copies)
    count = max(1, int(np.searchsorted(np.cumsum(np.tile(sizes, copies)), tokens, side="right")))
    chosen = select(sequences, rows[:count])
    return chosen if chosen.labels is None else replace(chosen, prefixes=None)


def _stand_ins(model: nn.Module, mode: FakeTensorMode | None) -> dict[str, Tensor]:
    """A tensor for each parameter and buffer, with a gradient where the parameter is trained: a fake one, or without
    `mode` one that shares the memory of the weights."""
    made: dict[str, Tensor] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        value = tensor.detach() if mode is None else mode.from_tensor(tensor.detach())
        if tensor.requires_grad:
            value.requires_grad_()
            value.grad = torch.zeros_like(value)
        made[name] = value
    return made


@contextmanager
def _unpacked_layers(model: nn.Module, mode: FakeTensorMode) -> Iterator[None]:
    """Lets layers with quantised weights compute with fake weights of their unpacked shape inside the block."""
    changed = [m for m in model.modules() if isinstance(m, nn.Linear) and not m.weight.is_floating_point()]
    try:
        for module in changed:
            vars(module)["forward"] = partial(_unpacked, mode, module, vars(module).get("compute_dtype"))
        yield
    finally:
        for module in changed:
            del vars(module)["forward"]


def _unpacked(mode: FakeTensorMode, module: nn.Linear, computed: torch.dtype | None, states: Tensor) -> Tensor:
    """The result of a layer with quantised weights. computed: the type in which it computes; None for that of `states`."""
    kind, device = computed or states.dtype, states.device  # The closure below must not keep the states alive.

    def weight() -> Tensor:
        with mode:
            return torch.empty(module.out_features, module.in_features, dtype=kind, device=device)

    with torch.autocast(device.type, enabled=False):
        product = _UnpackedProduct.apply(states.to(kind), weight)
        return (product if module.bias is None else product + module.bias.to(kind)).to(states.dtype)


class _UnpackedProduct(torch.autograd.Function):
    """states @ weightᵀ with a weight that is unpacked for the forward and again for the backward pass."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Callable[[], Tensor]) -> Tensor:
        ctx.weight = weight
        return states @ weight().t()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.weight(), None


def _tensors(output: Any) -> list[Tensor]:
    """The tensors of a model's output: a tensor, or a named tuple of tensors and None."""
    return [value for value in tree_leaves(output) if isinstance(value, Tensor)]
