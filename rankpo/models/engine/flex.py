"""FlexAttention: one kernel call for all packed sequences of a layer, with a block mask that is made from the lengths.

It is for CUDA where variable-length attention cannot run: in float32, and with head sizes or masks that its kernel lacks.
torch compiles the kernel at its first call. Elsewhere, where torch has no kernel with gradients, the same rule for pairs of
tokens masks the scores of all of them; this form is for tests.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache, cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from rankpo.models.engine.varlen import Pattern

BLOCK = 128  # Tokens of a block of queries or keys, as in torch's kernel.
SMALLEST_HEAD = 16  # The smallest head dimension of torch's kernel.
Allowed = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Documents:
    """Packed sequences and their block masks, which all layers of equal pattern share.

    lengths: of the sequences, in order. attended: as in `Pattern`.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device, attended: Sequence[int] | None = None) -> None:
        self.lengths, self.device, self.attended = lengths, device, attended
        self._masks: dict[tuple[bool, int | None], BlockMask] = {}

    @cached_property
    def starts(self) -> np.ndarray:
        """[S] the first token of each token's sequence."""
        sizes = np.asarray(self.lengths, dtype=np.int64)
        return np.repeat(np.cumsum(sizes) - sizes, sizes)

    @cached_property
    def limits(self) -> np.ndarray | None:
        """[S] the end of the tokens that a token's sequence attends to; None: of the sequence."""
        if self.attended is None:
            return None
        return self.starts + np.repeat(np.asarray(self.attended, dtype=np.int64), self.lengths)

    def mask(self, causal: bool, window: int | None) -> BlockMask:
        """The block mask of a pattern, see `Pattern`."""
        if (causal, window) not in self._masks:
            self._masks[causal, window] = self._block_mask(causal, window)
        return self._masks[causal, window]

    def blocks(self, causal: bool, window: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Two arrays [query blocks, key blocks] bool: blocks with some allowed pair, and blocks whose pairs are all allowed."""
        tokens = len(self.starts)
        firsts = np.arange(0, tokens, BLOCK)
        lasts = np.minimum(firsts + BLOCK, tokens) - 1
        ends = self.starts + np.repeat(self.lengths, self.lengths)
        low, high = self.starts[firsts], ends[lasts]  # Keys of the block's first and last sequences.
        if window is not None:
            low, high = np.maximum(low, firsts - window + 1), np.minimum(high, lasts + window)
        if causal:
            high = np.minimum(high, lasts + 1)
        some = (firsts[None, :] < high[:, None]) & (lasts[None, :] >= low[:, None])
        if window is not None or self.limits is not None:
            return some, np.zeros_like(some)
        whole = (lasts - firsts == BLOCK - 1) & (self.starts[firsts] == self.starts[lasts])
        same = self.starts[firsts][:, None] == self.starts[firsts][None, :]
        every = whole[:, None] & whole[None, :] & same
        return some, every & (lasts[None, :] <= firsts[:, None]) if causal else every

    def _block_mask(self, causal: bool, window: int | None) -> BlockMask:
        some, every = self.blocks(causal, window)
        return BlockMask.from_kv_blocks(
            *self._listed(some & ~every),
            *self._listed(every),
            BLOCK_SIZE=BLOCK,
            mask_mod=self._allowed(causal, window),
            seq_lengths=(len(self.starts), len(self.starts)),
        )

    def _listed(self, chosen: np.ndarray) -> tuple[Tensor, Tensor]:
        """The number of chosen key blocks of each query block [1, 1, q], and all key blocks, chosen ones first [1, 1, q, k]."""
        order = np.argsort(~chosen, axis=1, kind="stable").astype(np.int32)
        counts = chosen.sum(1, dtype=np.int32)
        return self._moved(counts)[None, None], self._moved(order)[None, None]

    def _moved(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device, non_blocking=True)

    def _allowed(self, causal: bool, window: int | None) -> Allowed:
        """The function that tells whether a query may attend to a key."""
        starts = self._moved(self.starts)
        limits = None if self.limits is None else self._moved(self.limits)

        def allowed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            kept = starts[query] == starts[key]
            if causal:
                kept = kept & (query >= key)
            if window is not None:
                kept = kept & ((query - key).abs() < window)
            if limits is not None:
                kept = kept & (key < limits[query])
            return kept

        return allowed


def attend(query: Tensor, key: Tensor, value: Tensor, documents: Documents, pattern: Pattern) -> Tensor:
    """Attention within each packed sequence. query: [1, heads, S, d]; key, value: [1, key heads, S, d].

    Returns [1, S, heads, d].
    """
    mask, grouped = documents.mask(pattern.causal, pattern.window), key.shape[1] != query.shape[1]
    if query.is_cuda:
        output = _compiled()(query, key, value, block_mask=mask, scale=pattern.scale, enable_gqa=grouped)
    else:
        allowed = pairs(documents, pattern)
        output = scaled_dot_product_attention(query, key, value, allowed, scale=pattern.scale, enable_gqa=grouped)
    return output.transpose(1, 2)


def pairs(documents: Documents, pattern: Pattern) -> Tensor:
    """[S, S] bool: whether a query may attend to a key."""
    places = torch.arange(len(documents.starts), device=documents.device)
    query, key = torch.meshgrid(places, places, indexing="ij")
    zero = torch.zeros_like(query)
    return documents.mask(pattern.causal, pattern.window).mask_mod(zero, zero, query, key)


@cache
def _compiled() -> Callable[..., Tensor]:
    compiled: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=True)
    return compiled


def fits(query: Tensor, dropout: float) -> bool:
    """Whether torch's kernel supports the device, head dimension and dropout, and runs on this machine."""
    if not query.is_cuda or dropout or query.shape[-1] < SMALLEST_HEAD or torch.compiler.is_compiling():
        return False
    return works(query.device, query.dtype, query.shape[-1])


@cache
def works(device: torch.device, dtype: torch.dtype, head: int) -> bool:
    """Whether the compiled kernel gives the attention of two short sequences, with gradients. Warns if it does not."""
    lengths = (9, 5)
    given = torch.rand(3, 1, 2, sum(lengths), head, device=device, dtype=dtype)
    pattern = Pattern(causal=True)
    try:
        with torch.enable_grad():
            leaf = given.detach().clone().requires_grad_()
            query, key, value = leaf.unbind()
            found = attend(query, key, value, Documents(lengths, device), pattern)
            found.float().sum().backward()  # type: ignore[no-untyped-call]
        query, key, value = given.unbind()
        expected = scaled_dot_product_attention(
            query, key, value, pairs(Documents(lengths, device), pattern)
        ).transpose(1, 2)
        assert leaf.grad is not None
        close = torch.allclose(found, expected, atol=1e-2) and bool(leaf.grad.isfinite().all())
        reason = "" if close else "its results differ from those of a mask over all pairs"
    except Exception as error:  # The compiler's errors have no common class.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if reason:
        warnings.warn(f"FlexAttention is not used, and attention is computed by lengths: {reason}", stacklevel=2)
    return not reason
