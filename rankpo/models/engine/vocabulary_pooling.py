"""Pooling of an output head's logits over the tokens of each sequence, without a [tokens, vocabulary] tensor.

The engine applies the head to blocks of tokens and pools each block at once. For the maximum it keeps the value and its
token for every sequence and vocabulary entry, so that the backward pass needs no logits: the gradient of an active
entry belongs to one token. For the sum, the backward pass computes the logits of each block again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rankpo.models.engine.token_logps import BLOCK_ELEMENTS, Head, add_product, head_product, product_type

POOLING = ("max", "sum")
ACTIVATIONS = ("relu", "log1p_relu")
Segment = tuple[int, slice]  # A sequence's number, and its tokens in a block.


def pool_vocabulary(
    hidden: Tensor,
    lengths: Tensor,
    head: Head,
    *,
    pooling: str = "max",
    activation: str = "relu",
    block_elements: int | None = None,
) -> Tensor:
    """Pools f(logits) over the tokens of each sequence, [n, V] in at least float32; 0 for a sequence without tokens.

    hidden: [tokens, D] inputs of the head, sequences concatenated. lengths: [n] on the CPU. activation: f is
    log(1 + relu(x)) for `relu`, and log(1 + log(1 + relu(x))) for `log1p_relu`. block_elements: logits of one block.
    Gradients reach `hidden` and the head. Raises ValueError for unknown names and for heads with a soft cap.
    """
    if pooling not in POOLING:
        raise ValueError(f"pooling must be one of {', '.join(POOLING)}, got {pooling!r}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if head.softcap is not None:
        raise ValueError("an output head with a soft cap cannot be pooled over the vocabulary")
    elements = block_elements or BLOCK_ELEMENTS.get(hidden.device.type, BLOCK_ELEMENTS["cuda"])
    size = max(1, elements // head.weight.shape[0])
    options = _Options(activation == "log1p_relu", size, product_type(hidden), tuple(lengths.tolist()))
    function = _Max if pooling == "max" else _Sum
    pooled: Tensor = function.apply(options, hidden, head.weight, head.bias)  # type: ignore[no-untyped-call]
    return pooled


class _Options(NamedTuple):
    """size: tokens of a block. kind: the type of the head's product. lengths: of the sequences."""

    double_log: bool
    size: int
    kind: torch.dtype
    lengths: tuple[int, ...]


class _Context(Protocol):
    """The autograd context."""

    options: _Options
    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Tensor, ...]

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


class _Max(torch.autograd.Function):
    """Saves [n, V] values and token numbers. The activations are monotonic, so they are applied to the maximum of the logits."""

    @staticmethod
    def forward(ctx: _Context, options: _Options, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        double_log, size, kind, lengths = options
        wanted = any(ctx.needs_input_grad)
        wide = torch.promote_types(kind, torch.float32)
        best = torch.zeros(len(lengths), len(weight), dtype=wide, device=hidden.device)
        token = torch.zeros(best.shape if wanted else (0,), dtype=torch.int32, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            used = weight.to(kind)
            for rows, segments in _blocks(lengths, size):
                logits = _logits(hidden[rows].to(kind), used, bias)
                for number, inside in segments:
                    if wanted:
                        _raise_to(best[number], token[number], logits[inside], rows.start + inside.start)
                    else:
                        torch.maximum(best[number], logits[inside].amax(0), out=best[number])
        pooled = _activated(best, double_log)
        if wanted:
            ctx.options = options
            ctx.save_for_backward(hidden, weight, bias, pooled, token)
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        double_log = ctx.options.double_log
        hidden, weight, bias, pooled, token = ctx.saved_tensors
        _, for_hidden, for_weight, for_bias = ctx.needs_input_grad
        of_logit = gradient * _slope(pooled, double_log)
        sequence, entry = of_logit.nonzero(as_tuple=True)
        values = of_logit[sequence, entry]
        # Each (token, entry) occurs once: a token belongs to one sequence.
        places = torch.stack([token[sequence, entry].long(), entry])
        shape = (len(hidden), len(weight))
        sparse = torch.sparse_coo_tensor(places, values, shape, check_invariants=False).coalesce()
        with torch.autocast(hidden.device.type, enabled=False):
            of_hidden = torch.sparse.mm(sparse, weight.to(values.dtype)) if for_hidden else None
            of_weight = torch.sparse.mm(sparse.t().coalesce(), hidden.to(values.dtype)) if for_weight else None
        return (
            None,
            None if of_hidden is None else of_hidden.to(hidden.dtype),
            None if of_weight is None else of_weight.to(weight.dtype),
            of_logit.sum(0).to(bias.dtype) if for_bias else None,
        )


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, options: _Options, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        double_log, size, kind, lengths = options
        ctx.options = options
        ctx.save_for_backward(hidden, weight, bias)
        wide = torch.promote_types(kind, torch.float32)
        pooled = torch.zeros(len(lengths), len(weight), dtype=wide, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            used = weight.to(kind)
            for rows, segments in _blocks(lengths, size):
                values = _activated(_logits(hidden[rows].to(kind), used, bias).clamp_(min=0), double_log)
                for number, inside in segments:
                    pooled[number] += values[inside].sum(0)
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        double_log, size, kind, lengths = ctx.options
        hidden, weight, bias = ctx.saved_tensors
        _, for_hidden, for_weight, for_bias = ctx.needs_input_grad
        wide = torch.promote_types(kind, torch.float32)
        of_hidden = torch.empty_like(hidden) if for_hidden else None
        of_weight = torch.zeros_like(weight, dtype=wide) if for_weight else None
        of_bias = torch.zeros_like(bias, dtype=wide) if for_bias else None
        with torch.autocast(hidden.device.type, enabled=False):
            used = weight.to(kind)
            for rows, segments in _blocks(lengths, size):
                block = hidden[rows].to(kind)
                values = _activated(_logits(block, used, bias).clamp_(min=0), double_log)
                of_logits = _slope(values, double_log)
                for number, inside in segments:
                    of_logits[inside] *= gradient[number]
                if of_bias is not None:
                    of_bias += of_logits.sum(0)
                of_logits = of_logits.to(kind)
                if of_hidden is not None:
                    of_hidden[rows] = head_product(of_logits, used)
                if of_weight is not None:
                    add_product(of_weight, of_logits.t(), block)
        return (
            None,
            of_hidden,
            None if of_weight is None else of_weight.to(weight.dtype),
            None if of_bias is None else of_bias.to(bias.dtype),
        )


def _blocks(lengths: tuple[int, ...], size: int) -> Iterator[tuple[slice, list[Segment]]]:
    """Yields the tokens of each block and its segments. A sequence may span several blocks."""
    total = sum(lengths)
    segments: list[Segment] = []
    begin = place = 0
    for number, length in enumerate(lengths):
        done = 0
        while done < length:
            taken = min(length - done, begin + size - place)
            segments.append((number, slice(place - begin, place - begin + taken)))
            place, done = place + taken, done + taken
            if place == begin + size or place == total:
                yield slice(begin, place), segments
                begin, segments = place, []


def _logits(block: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    logits = head_product(block, weight.t())
    return logits if bias is None else logits.add_(bias)


def _raise_to(best: Tensor, token: Tensor, logits: Tensor, first: int) -> None:
    """Updates running maxima [V] and their tokens in place with logits [t, V]. first: index of the first token."""
    if logits.device.type == "cpu":  # A running maximum stays in the cache; max over rows reads in strides.
        for place, row in enumerate(logits):
            token.masked_fill_(row > best, first + place)
            torch.maximum(best, row, out=best)
        return
    values, places = logits.max(0)
    larger = values > best
    token.copy_(
        torch.where(larger, (places + first).to(token.dtype), token)
    )  # An index by a mask would make the CPU wait for the device.
    torch.maximum(best, values, out=best)


def _activated(positive: Tensor, double_log: bool) -> Tensor:
    """f of logits that are not negative, in place."""
    return positive.log1p_().log1p_() if double_log else positive.log1p_()


def _slope(pooled: Tensor, double_log: bool) -> Tensor:
    """f' from the values y of f: e^-y, and e^-y · e^-(e^y - 1) for two logarithms; 0 where y is 0."""
    slope = torch.exp(-pooled - torch.expm1(pooled)) if double_log else torch.exp(-pooled)
    return slope.masked_fill_(pooled == 0, 0)
