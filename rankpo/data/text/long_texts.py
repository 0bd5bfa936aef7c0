"""Token ids of the beginnings of long texts, equal to those of the whole texts, without tokenising the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SMALLEST_BOUND = 8192  # tokens; equal for all usual maximum lengths, so that runs that differ in them share a store
CHARACTERS_PER_TOKEN = 4  # of the first prefix; English text has 4 to 5, and a prefix that is too short is doubled
MARGIN = 256  # characters at the end of a prefix that are never used: a special token may be cut there


def token_bound(max_length: int) -> int:
    """Returns a number of tokens, at least `max_length`, at which long texts may be cut: a power of two."""
    return max(SMALLEST_BOUND, 1 << (max_length - 1).bit_length())


def leading_ids(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], bound: int, split_special: bool
) -> list[list[int]]:
    """Returns the token ids of each text, without special tokens around it; of a long text the first `bound` ids.

    bound: tokens. A text of at most `CHARACTERS_PER_TOKEN * bound` characters keeps all of its tokens.
    split_special: whether a special token's name inside a text is plain text.
    """
    options: dict[str, object] = {"add_special_tokens": False, "truncation": False, "verbose": False}
    if split_special:
        options["split_special_tokens"] = True
    first = CHARACTERS_PER_TOKEN * bound
    long = {n for n, text in enumerate(texts) if len(text) > first} if tokenizer.is_fast else set()
    short = [text for n, text in enumerate(texts) if n not in long]
    encoded: Any = tokenizer(short, return_attention_mask=False, **options)["input_ids"] if short else []
    rest = iter(encoded)
    return [_leading(tokenizer, text, bound, options) if n in long else next(rest) for n, text in enumerate(texts)]


def _leading(tokenizer: PreTrainedTokenizerBase, text: str, bound: int, options: dict[str, object]) -> list[int]:
    """Returns the first `bound` ids of a text from the shortest prefix, doubled each time, that decides them."""
    size = CHARACTERS_PER_TOKEN * bound
    while size < len(text):
        ids = _decided(tokenizer, text[:size], options)
        if len(ids) >= bound:
            return ids[:bound]
        size *= 2
    ids = tokenizer(text, return_attention_mask=False, **options)["input_ids"]
    return list(ids[:bound])


def _decided(tokenizer: PreTrainedTokenizerBase, prefix: str, options: dict[str, object]) -> list[int]:
    """Returns the ids of a prefix that no text behind it can change.

    A tokenizer converts the words of its pre-tokenizer one by one, so a word is decided once another word follows it.
    Without a pre-tokenizer the whole text is one word, and nothing is decided.
    """
    encoding = tokenizer(prefix, return_attention_mask=False, **options).encodings[0]
    words, offsets = encoding.word_ids, encoding.offsets
    end = len(words)
    while end and (offsets[end - 1][1] > len(prefix) - MARGIN or words[end - 1] == words[-1]):
        end -= 1
    while 0 < end < len(words) and words[end - 1] == words[end]:
        end -= 1
    return list(encoding.ids[:end])
