"""Pooling: one vector per sequence from the hidden states of its tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def pool(hidden: Tensor, lengths: Tensor, pooling: str) -> Tensor:
    """[n, D] float32. hidden: [tokens, D], sequences concatenated; lengths: [n].

    The places come from the lengths, never from looking for a pad id: pad may equal eos, or occur in the text.
    """
    ends = torch.cumsum(lengths, 0).to(hidden.device)
    if pooling == "cls":
        return hidden[ends - lengths.to(hidden.device)].float()
    if pooling == "last":
        return hidden[ends - 1].float()
    sums = torch.stack([part.sum(0) for part in hidden.float().split(lengths.tolist())])  # [n, D]
    return sums / lengths.to(hidden.device)[:, None]
