"""Variable-length attention: one kernel call for all packed sequences of a layer, by torch's own flash attention.

`torch.nn.attention.varlen.varlen_attn` runs on CUDA in bfloat16 and float16. The loop over runs of equal length in
`packing` gives the same values everywhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import varlen as of_torch

HALF = (torch.bfloat16, torch.float16)
LARGEST_HEAD = 256  # Flash attention's limit of the head dimension; it must also be a multiple of 8.


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """The pattern of attention in each sequence.

    window: a token attends to itself and to the window - 1 tokens before it, and also after it if not causal; None: no
    limit. scale: factor on the inner products; None: 1/√d. attended: the number of first tokens of each sequence that
    can be attended to; None: all.
    """

    causal: bool
    window: int | None = None
    scale: float | None = None
    attended: Sequence[int] | None = None

    @property
    def sides(self) -> tuple[int, int]:
        """The number of tokens before and after a token that it attends to, -1 for all, as in flash attention."""
        before = -1 if self.window is None else self.window - 1
        return before, 0 if self.causal else before


def fits(query: Tensor, dropout: float) -> bool:
    """Whether the kernel supports the device, dtype, head dimension and dropout of queries [1, heads, S, d]."""
    head = query.shape[-1]
    return query.is_cuda and query.dtype in HALF and head <= LARGEST_HEAD and head % 8 == 0 and dropout == 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Spans:
    """Borders of the packed sequences, in queries and in keys.

    queries, keys: [n + 1] int32, the first token of each sequence and the number of tokens. longest_query, longest_key:
    tokens of the longest sequence.
    """

    queries: Tensor
    keys: Tensor
    longest_query: int
    longest_key: int


def attend(query: Tensor, key: Tensor, value: Tensor, borders: Tensor, longest: int, pattern: Pattern) -> Tensor:
    """Attention within each packed sequence. query: [1, heads, S, d]; key, value: [1, key heads, S, d].

    borders: [n + 1] int32, the first token of each sequence and S. longest: tokens of the longest sequence.
    Returns [1, S, heads, d].
    """
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    spans = Spans(queries=borders, keys=borders, longest_query=longest, longest_key=longest)
    return attend_spans(q, k, v, spans, pattern)[None]


def attend_spans(query: Tensor, key: Tensor, value: Tensor, spans: Spans, pattern: Pattern) -> Tensor:
    """Attention of the queries of each sequence to its keys. query: [Q, heads, d]; key, value: [S, key heads, d].

    Returns [Q, heads, d].
    """
    output = of_torch.varlen_attn(
        query,
        key,
        value,
        spans.queries,
        spans.keys,
        spans.longest_query,
        spans.longest_key,
        scale=pattern.scale,
        window_size=pattern.sides,
        enable_gqa=key.shape[1] != query.shape[1],
    )
    assert isinstance(output, Tensor)  # It would be a pair if the log-sum-exp were requested.
    return output
