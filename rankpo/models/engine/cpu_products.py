"""Matrix products of a model on a CPU without gradient: oneDNN's float32 kernels where they are faster than MKL's.

On AMD processors, MKL's float32 products reach 0.85 to 0.9 of the rate of oneDNN's. oneDNN also applies BERT's GELU before a
product leaves the cache. Results differ in the last digits, by about 2e-7 of a normalised embedding: oneDNN's rounding
errors of a product of 1,536 terms are twice those of MKL, which is why scores of rerankers keep MKL. oneDNN's product for
the gradient of weights is slower than MKL's, so training keeps MKL too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import GELUActivation

CPU_INFO = Path("/proc/cpuinfo")
FEWEST_ROWS = 128  # For fewer rows, oneDNN's preparation of a new shape costs more than its kernel saves.


@cache
def onednn_is_faster(cpu_info: Path = CPU_INFO) -> bool:
    """Whether this machine has an AMD processor and torch has oneDNN's product, which a small trial compares."""
    try:
        amd = "AuthenticAMD" in cpu_info.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return amd and torch.backends.mkldnn.is_available() and _proved()


@torch.no_grad()
def _proved() -> bool:
    """Whether oneDNN's product with bias and GELU is that of torch's own functions."""
    with torch.random.fork_rng(devices=[]):  # The trial must not change the random numbers of a run.
        layer, states = nn.Linear(8, 12), torch.linspace(-3, 3, 40).reshape(5, 8)
    try:
        found = [_onednn(layer, states, activation) for activation in ("none", "gelu")]
    except (AttributeError, RuntimeError):  # torch has the operator under a private name, which may change.
        return False
    expected = functional.linear(states, layer.weight, layer.bias)
    return torch.allclose(found[0], expected, atol=1e-5) and torch.allclose(
        found[1], functional.gelu(expected), atol=1e-5
    )


@contextmanager
def fast_products(model: nn.Module) -> Iterator[None]:
    """Lets the linear layers of a float32 model on a CPU compute with oneDNN inside the block, where that is faster.

    Passes with gradient or autocast, other types of layers, and few rows are computed as before.
    """
    changed: list[nn.Module] = []
    try:
        if onednn_is_faster() and not any(module._compiled_call_impl for module in model.modules()):
            for module in model.modules():
                forward = _forward_of(module)
                if forward is not None:
                    vars(module)["forward"] = forward
                    changed.append(module)
        yield
    finally:
        for module in changed:
            del vars(module)["forward"]


def _forward_of(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """The forward pass with oneDNN of a linear layer or of BERT's first layer of an MLP, or None for other modules."""
    if "forward" in vars(module):
        return None
    if type(module) is nn.Linear:
        return partial(_linear, module) if _fits(module) else None
    dense, activation = (getattr(module, name, None) for name in ("dense", "intermediate_act_fn"))
    if type(dense) is nn.Linear and isinstance(activation, GELUActivation) and activation.act is functional.gelu:
        return partial(_with_gelu, dense, type(module).forward, module) if _fits(dense) else None
    return None


def _fits(layer: nn.Linear) -> bool:
    """Whether the layer has whole float32 weights on the CPU, and no hooks, which strategies use to gather weights."""
    weight = layer.weight
    whole = type(weight) is nn.Parameter and not (layer._forward_hooks or layer._forward_pre_hooks)
    return whole and weight.device.type == "cpu" and weight.dtype == torch.float32


def _usable(states: Tensor, width: int) -> bool:
    """Whether this call may compute with oneDNN, which records no graph."""
    rows = states.numel() // max(1, width)
    return (
        states.dtype == torch.float32
        and rows >= FEWEST_ROWS
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )


def _onednn(layer: nn.Linear, states: Tensor, activation: str) -> Tensor:
    """activation: none or gelu."""
    form = "none" if activation == "gelu" else ""  # GELU by the error function, not by tanh.
    product: Tensor = torch.ops.mkldnn._linear_pointwise(states, layer.weight, layer.bias, activation, [], form)
    return product


def _linear(layer: nn.Linear, states: Tensor) -> Tensor:
    if not _usable(states, layer.in_features):
        return functional.linear(states, layer.weight, layer.bias)
    return _onednn(layer, states, "none")


def _with_gelu(
    dense: nn.Linear, plain: Callable[[nn.Module, Tensor], Tensor], module: nn.Module, hidden_states: Tensor
) -> Tensor:
    if not _usable(hidden_states, dense.in_features):
        return plain(module, hidden_states)
    return _onednn(dense, hidden_states, "gelu")
