"""Pooling: one vector per sequence from the hidden states of its tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pool(hidden: Tensor, lengths: Tensor, pooling: str, skipped: Tensor | None = None) -> Tensor:
    """[n, D] float32, or [n, m·D] for m ways joined by "+". hidden: [tokens, D], sequences concatenated; lengths: [n].

    Ways: cls, last, mean, max, mean_sqrt_len (the sum over √length), weighted_mean (the i-th token weighs i, from 1).
    skipped: [n] tokens to exclude at the beginning of each sequence, such as a prompt; `last` ignores it. Positions
    come from the lengths and not from the pad id, which may equal eos or occur in the text. Sequences must have tokens:
    see `RankingModel.hidden_states`.
    """
    ways = [_pool(hidden, lengths, way, skipped) for way in pooling.split("+")]
    return ways[0] if len(ways) == 1 else torch.cat(ways, dim=1)


def place_of_token(lengths: Tensor, pooling: str, skipped: Tensor | None = None) -> Tensor | None:
    """[n] int64 on the CPU: the row of the one token that `pool` reads of each sequence, or None if it reads several."""
    ends = torch.cumsum(lengths, 0)
    if pooling == "last":
        return ends - 1
    if pooling != "cls":
        return None
    if skipped is None:
        return ends - lengths
    # A sequence with only a prompt uses its first token.
    return ends - lengths + torch.where(skipped < lengths, skipped, 0)


def _pool(hidden: Tensor, lengths: Tensor, way: str, skipped: Tensor | None) -> Tensor:
    one = place_of_token(lengths, way, skipped)
    if one is not None:
        return hidden[one.to(hidden.device, non_blocking=True)].float()
    # A sequence with only a prompt gives 0.
    left_out = None if skipped is None else torch.minimum(skipped, lengths)
    sizes = lengths.tolist()
    firsts = [0] * len(sizes) if left_out is None else left_out.tolist()
    parts = [part[first:] for part, first in zip(hidden.float().split(sizes), firsts, strict=True)]
    if way == "max":
        return torch.stack([part.amax(0) if len(part) else part.sum(0) for part in parts])
    if way == "weighted_mean":
        places = [
            torch.arange(first + 1, size + 1, device=hidden.device) for first, size in zip(firsts, sizes, strict=True)
        ]
        weighed = [
            (part * place[:, None]).sum(0) / place.sum().clamp(min=1) for part, place in zip(parts, places, strict=True)
        ]
        return torch.stack(weighed)
    sums = torch.stack([part.sum(0) for part in parts])  # [n, D]
    counts = (lengths if left_out is None else lengths - left_out).clamp(min=1)[:, None]
    counts = counts.to(hidden.device, non_blocking=True)
    return sums / (counts if way == "mean" else counts.sqrt())


def in_order(parts: Sequence[Tensor], rows: Sequence[Tensor], count: int, device: torch.device) -> Tensor | None:
    """Returns the values [count, …] of all chunks in the order of the sequences; 0 for an empty sequence.

    parts: [n, …] values of each chunk; rows: [n] the chunk's rows. Returns None if there are no chunks.
    """
    if not parts:
        return None
    values, places = torch.cat(list(parts)), torch.cat(list(rows))
    if len(places) == count:
        return values[torch.argsort(places).to(device, non_blocking=True)]
    full = torch.zeros(count, *values.shape[1:], dtype=values.dtype, device=device)
    return full.index_copy(0, places.to(device, non_blocking=True), values)
