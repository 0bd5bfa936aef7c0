"""KeptAttention: attention outputs of a forward pass without gradient, which a second pass over the same tokens reads.

A gradient cache computes most parts of an update twice. The second pass needs the inputs of attention for its backward
pass, but not attention itself if its output and the logarithm of its softmax's denominator are known. Both take
D + heads numbers for each token and layer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

CPU_TYPES = (torch.float32, torch.bfloat16, torch.float16)


class KeptAttention:
    """The attention outputs of one forward pass, in the order of its calls."""

    def __init__(self) -> None:
        self._outputs: deque[tuple[Tensor, Tensor]] = deque()
        self._again = False

    @contextmanager
    def written(self) -> Iterator[None]:
        """Keeps the outputs of all attention calls inside the block, which must not record a graph."""
        with self._active(again=False):
            yield

    @contextmanager
    def read(self) -> Iterator[None]:
        """Reads the kept outputs in place of attention inside the block, which must repeat the calls of the first one.

        Each output is forgotten once it is read.
        """
        with self._active(again=True):
            yield
        if self._outputs:
            raise RuntimeError(f"the second pass left {len(self._outputs)} attention outputs of the first pass unread")

    @contextmanager
    def _active(self, again: bool) -> Iterator[None]:
        self._again = again
        token = _ACTIVE.set(self)
        try:
            yield
        finally:
            _ACTIVE.reset(token)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float | None) -> Tensor:
        """Attention of [n, heads, length, d] without mask and dropout; keys and values may have fewer heads."""
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            key, value = (states.repeat_interleave(groups, 1) for states in (key, value))
        if not self._again:
            output, denominators = _attention(query, key, value, 0.0, causal, scale=scale)
            self._outputs.append((output, denominators))
            return output
        output, denominators = self._outputs.popleft()
        if output.shape != query.shape:
            raise RuntimeError(
                f"attention of {tuple(query.shape)} in the second pass, {tuple(output.shape)} in the first"
            )
        result: Tensor = _Known.apply(query, key, value, (output, denominators), (causal, scale))  # type: ignore[no-untyped-call]
        return result


_ACTIVE: ContextVar[KeptAttention | None] = ContextVar("kept_attention", default=None)


def kept_attention(query: Tensor, mask: Tensor | None, dropout: float) -> KeptAttention | None:
    """The store of the pass that runs now, or None if there is none or its kernel does not support this call."""
    store = None if torch.compiler.is_compiling() else _ACTIVE.get()
    fits = mask is None and dropout == 0 and query.device.type == "cpu" and query.dtype in CPU_TYPES
    return store if fits else None


def bytes_per_token(body: PreTrainedModel) -> int:
    """Bytes of a token's outputs in all layers of a body, in float32; 0 for a body without heads."""
    config = body.config.get_text_config()
    heads = getattr(config, "num_attention_heads", 0)
    width = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    return 4 * getattr(config, "num_hidden_layers", 0) * heads * (width + 1)


_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_attention_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _Known(torch.autograd.Function):
    """Attention whose output is known: the forward pass computes nothing."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        known: tuple[Tensor, Tensor],
        pattern: tuple[bool, float | None],
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, *known)
        ctx.causal, ctx.scale = pattern
        return known[0].view_as(known[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        found = _attention_backward(gradient, *ctx.saved_tensors, 0.0, ctx.causal, scale=ctx.scale)
        return (*found, None, None)
