"""Token ids of whole texts of any length, tokenised part by part, since a tokenizer needs much memory for a long text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rankpo.data.text.long_texts import BORDER, MARGIN, calls
from rankpo.data.text.tokens import plain_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PART = 1 << 16  # characters


def whole_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Iterator[np.ndarray]:
    """Yields the ids [n] int64 of each text, in which names of special tokens are plain text.

    A text of more than `PART` characters has the ids of the whole where a letter and a blank stand before each cut. Without
    blanks, as in Chinese, a token at a cut may differ.
    """
    for call in calls(texts):
        parted = [tokenizer.is_fast and len(text) > PART for text in call]
        short = iter(plain_ids(tokenizer, [text for text, long in zip(call, parted, strict=True) if not long]))
        for text, long in zip(call, parted, strict=True):
            ids = list(_parts(tokenizer, text)) if long else [np.array(next(short), dtype=np.int64)]
            yield np.concatenate(ids)


def _parts(tokenizer: PreTrainedTokenizerBase, text: str) -> Iterator[np.ndarray]:
    """Yields the ids of a text in parts. Each part begins at a border before the first token that is taken from it."""
    begin = taken = 0
    while True:
        part = text[begin : begin + PART]
        encoded: Any = tokenizer(
            part, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, verbose=False
        )
        encoding = encoded.encodings[0]
        starts = np.array([start for start, _ in encoding.offsets], dtype=np.int64) + begin
        first = int(np.searchsorted(starts, taken))
        if begin + PART >= len(text):
            yield np.array(encoding.ids[first:], dtype=np.int64)
            return
        limit = begin + PART - MARGIN
        end = _decided(encoding.word_ids, starts, first, limit)
        yield np.array(encoding.ids[first:end], dtype=np.int64)
        taken = int(starts[end]) if end < len(starts) else limit
        begin = _border(text, max(begin + 1, taken - PART // 2), taken)


def _decided(words: Sequence[int | None], starts: np.ndarray, first: int, limit: int) -> int:
    """The end of the tokens from `first` on that begin before `limit`: the end of a word, or any if one word reaches it."""
    inside = end = int(np.searchsorted(starts, limit))
    while first < end < len(words) and words[end - 1] == words[end]:
        end -= 1
    return end if end > first else max(inside, first)


def _border(text: str, low: int, high: int) -> int:
    """The last border of words more than `MARGIN` before `high`; `high` itself if there is none behind `low`.

    A tokenizer may put a blank in front of the first word of a part, so that word lies before `high`.
    """
    top = high - MARGIN
    while top > low:
        found = [match.end() for match in BORDER.finditer(text, max(low, top - MARGIN), top)]
        if found:
            return found[-1]
        top -= MARGIN
    return high
