"""Truncation of the passages of a list and of the turns of a conversation to a number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rankpo.data.text.long_texts import leading_tokens, token_bound, trailing_tokens
from rankpo.types import Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def fit(lengths: np.ndarray, budget: int, largest: int) -> tuple[np.ndarray, int]:
    """The kept tokens of passages of these lengths, and the cap; at most `largest` for each and `budget` in total.

    The longest passages are truncated: the cap is the largest c with Σ min(length, c) <= budget. The remaining tokens go
    to the first capped passages, one each. A budget below the number of passages gives a cap of 0.
    """
    lengths = np.minimum(lengths, largest)
    if lengths.sum() <= budget:
        return lengths, largest
    ordered = np.sort(lengths)
    shorter = np.concatenate([[0], np.cumsum(ordered)[:-1]])  # tokens of the passages before each in size
    left = np.arange(len(ordered), 0, -1)
    # The cap is the equal share of the rest at the first passage that is longer than its share.
    share = (budget - shorter) // left
    cap = max(0, int(share[np.argmax(ordered > share)]))
    kept = np.minimum(lengths, cap)
    rest = max(0, budget - int(kept.sum()))
    capped = np.flatnonzero(lengths > cap)[:rest]
    kept[capped] += 1
    return kept, cap


def cut_turns(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], budget: int) -> tuple[Turn, ...]:
    """The turns, truncated to `budget` tokens of content in total; the longest are truncated first.

    A system turn keeps its beginning, and any other turn its end.
    """
    starts = [_token_starts(tokenizer, content, budget, at_end=name != "system") for name, content in turns]
    kept, _ = fit(np.array([len(places) for places in starts]), budget, budget)
    return tuple(
        (name, _part(content, places, count, at_end=name != "system"))
        for (name, content), places, count in zip(turns, starts, kept.tolist(), strict=True)
    )


def _token_starts(tokenizer: PreTrainedTokenizerBase, content: str, budget: int, *, at_end: bool) -> list[int]:
    """The characters at which tokens begin, of a long text only those that a cut to `budget` tokens may keep.

    Without a fast tokenizer, characters stand for tokens.
    """
    if not tokenizer.is_fast:
        return list(range(len(content)))
    tokens_of = trailing_tokens if at_end else leading_tokens
    return tokens_of(tokenizer, content, token_bound(budget + 1)).starts


def _part(content: str, starts: Sequence[int], count: int, *, at_end: bool) -> str:
    """`count` tokens of a text, from its end or its beginning."""
    if count >= len(starts):
        return content
    if not at_end:
        return content[: starts[count]]
    return content[starts[len(starts) - count] :] if count else ""
