"""How much arithmetic an update needs, and how fast this machine multiplies matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.sides import Outcome, Update

if TYPE_CHECKING:
    from torch import nn

SIZE = 2048


def training_gflop(backbone: nn.Module, lengths: Sequence[int], causal: bool) -> float:
    """Useful GFLOP of forward and backward over sequences of these lengths: padding and recomputation do not count.

    A product of [m, k] and [k, n] is 2·m·k·n; backward is twice forward. Linear layers: every token meets every
    weight. Attention: a token meets the tokens it may see, once in QKᵀ and once in the product with V; a causal one
    sees half of them.
    """
    from torch import nn

    config: Any = backbone.config
    config = config.get_text_config()
    weights = sum(module.weight.numel() for module in backbone.modules() if isinstance(module, nn.Linear))
    pairs = sum(length * (length + 1) / 2 if causal else length * length for length in lengths)
    width = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    forward = 2 * weights * sum(lengths) + 2 * 2 * pairs * width * config.num_hidden_layers
    return 3 * forward / 1e9


def matrix_products(*, count: int) -> Update:
    """Updates of `count` float32 products of 2048 x 2048 matrices: the rate that nothing on this machine exceeds."""
    import torch

    left, right = torch.rand(2, SIZE, SIZE)
    result = torch.empty(SIZE, SIZE)

    def update(step: int) -> Outcome:
        for _ in range(count):
            torch.mm(left, right, out=result)
        return Outcome(gflop=count * 2 * SIZE**3 / 1e9)

    return update
