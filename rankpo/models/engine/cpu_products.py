"""Matrix products of a model on a CPU without gradient: oneDNN's float32 kernels where they are faster than MKL's.

On AMD processors, MKL's float32 products reach 0.85 to 0.9 of the rate of oneDNN's. oneDNN also applies BERT's GELU before a
product leaves the cache. Results differ in the last digits, by about 2e-7 of a normalised embedding: oneDNN's rounding
errors of a product of 1,536 terms are twice those of MKL, which is why scores of rerankers keep MKL. oneDNN's product for
the gradient of weights is slower than MKL's, so training keeps MKL too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import GELUActivation

CPU_INFO = Path("/proc/cpuinfo")
PACKED_BYTES = 1 << 28  # The weights of the linear layers are copied into oneDNN's own order if they take at most this.
PACKED_TOKENS = 8192  # Tokens from which on the faster products outweigh the copy.
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
@torch.autocast("cpu", enabled=False)  # A caller's autocast would round one side alone.
def _proved() -> bool:
    """Whether oneDNN's product with bias and GELU is that of torch's own functions."""
    with torch.random.fork_rng(devices=[]):  # The trial must not change the random numbers of a run.
        layer, states = nn.Linear(8, 12), torch.linspace(-3, 3, 40).reshape(5, 8)
    try:
        made = [_Product(layer, packed) for packed in (False, True)]
        found = [product.of(states, activation) for activation in ("none", "gelu") for product in made]
    except (AttributeError, RuntimeError):  # torch has the operator under a private name, which may change.
        return False
    expected = functional.linear(states, layer.weight, layer.bias)
    wanted = [expected, expected, functional.gelu(expected), functional.gelu(expected)]
    return all(torch.allclose(one, other, atol=1e-5) for one, other in zip(found, wanted, strict=True))


@contextmanager
def fast_products(model: nn.Module, tokens: int) -> Iterator[None]:
    """Lets the linear layers of a float32 model on a CPU compute with oneDNN inside the block, where that is faster.

    tokens: about as many will be computed inside the block. For many tokens of a small model, the block holds a second
    copy of the linear layers' weights, with which products are a further 4 % faster. The weights must not change inside.
    Passes with gradient or autocast, other types of layers, and few rows are computed as before.
    """
    changed: list[nn.Module] = []
    try:
        if onednn_is_faster() and not any(module._compiled_call_impl for module in model.modules()):
            layers = [module for module in model.modules() if type(module) is nn.Linear and _fits(module)]
            small = sum(layer.weight.nbytes for layer in layers) <= PACKED_BYTES
            products: dict[nn.Module, _Product] = {
                layer: _Product(layer, packed=small and tokens >= PACKED_TOKENS) for layer in layers
            }
            for module in model.modules():
                forward = _forward_of(module, products)
                if forward is not None:
                    vars(module)["forward"] = forward
                    changed.append(module)
        yield
    finally:
        for module in changed:
            del vars(module)["forward"]


class _Product:
    """A linear layer's product by oneDNN, which records no graph. packed: copies the weight into oneDNN's own order."""

    def __init__(self, layer: nn.Linear, packed: bool = False) -> None:
        self.layer = layer
        weight = layer.weight.detach()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_TOKENS) if packed else weight

    def of(self, states: Tensor, activation: str) -> Tensor:
        """activation: none or gelu."""
        form = "none" if activation == "gelu" else ""  # GELU by the error function, not by tanh.
        product: Tensor = torch.ops.mkldnn._linear_pointwise(states, self.weight, self.layer.bias, activation, [], form)
        return product


def _forward_of(module: nn.Module, products: Mapping[nn.Module, _Product]) -> Callable[[Tensor], Tensor] | None:
    """The forward pass with oneDNN of a linear layer or of BERT's first layer of an MLP, or None for other modules."""
    if "forward" in vars(module):
        return None
    if module in products:
        return partial(_linear, products[module])
    dense, activation = (getattr(module, name, None) for name in ("dense", "intermediate_act_fn"))
    exact = isinstance(activation, GELUActivation) and activation.act is functional.gelu
    if exact and isinstance(dense, nn.Linear) and dense in products:
        return partial(_with_gelu, products[dense], type(module).forward, module)
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


def _linear(product: _Product, states: Tensor) -> Tensor:
    layer = product.layer
    if not _usable(states, layer.in_features):
        return functional.linear(states, layer.weight, layer.bias)
    return product.of(states, "none")


def _with_gelu(
    product: _Product, plain: Callable[[nn.Module, Tensor], Tensor], module: nn.Module, hidden_states: Tensor
) -> Tensor:
    if not _usable(hidden_states, product.layer.in_features):
        return plain(module, hidden_states)
    return product.of(hidden_states, "gelu")
