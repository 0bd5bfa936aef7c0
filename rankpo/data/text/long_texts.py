"""Token ids of the beginnings and ends of long texts, equal to those of the whole texts, without tokenising the rest."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from transformers.tokenization_utils_tokenizers import TokenizersBackend

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SMALLEST_BOUND = 8192  # tokens; equal for all usual maximum lengths, so that runs that differ in them share a store
CHARACTERS_PER_TOKEN = 4  # of the first part; English text has 4 to 5, and a part that is too short is doubled
MARGIN = 256  # characters at the cut end of a part that are never used: a special token may be cut there
ROOM_FOR_ENDS = 64  # tokens that are taken off a text: its first token, a context in front
# Between a letter or digit and the blank behind it every pre-tokenizer ends a word, whatever stands before.
TEXTS_PER_CALL = 2048  # Enough for the threads of a tokenizer, and few enough for memory.
BYTES_PER_CALL = 1 << 20  # A tokenizer needs 100 to 400 bytes of memory for each byte of text.
BORDER = re.compile(r"[^\W_](?= )")

Prepare = Callable[[int, str], str]  # The number of a text and a part of it -> what is tokenised in its place.


class Tokens(NamedTuple):
    """Ids, and the character of the text at which each token begins."""

    ids: list[int]
    starts: list[int]


def token_bound(max_length: int) -> int:
    """Returns a power of two, at least `max_length`, as the number of tokens to which long texts are truncated."""
    return max(SMALLEST_BOUND, 1 << (max_length - 1).bit_length())


def leading_ids(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    bound: int,
    split_special: bool,
    prepare: Prepare = lambda _, text: text,
) -> list[list[int]]:
    """Returns the token ids of each text, without special tokens around it; of a long text the first `bound` ids.

    bound: tokens. A text of at most `CHARACTERS_PER_TOKEN * bound` characters keeps all of its tokens.
    split_special: whether a special token's name inside a text is plain text. prepare: rewrites a text, and the
    beginning of a text, cut at white space, into the beginning of the whole's form.
    """
    options = _options(split_special)
    long = {n for n, text in enumerate(texts) if _is_long(tokenizer, text, bound)}
    short = [prepare(n, text) for n, text in enumerate(texts) if n not in long]
    rest = chain.from_iterable(_ids(tokenizer, call, split_special, options) for call in calls(short))
    return [
        _leading(tokenizer, text, bound, options, partial(prepare, n)).ids if n in long else next(rest)
        for n, text in enumerate(texts)
    ]


def calls(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yields the texts in parts that one call of a tokenizer takes; a text larger than a part has one of its own."""
    start = size = 0
    for number, text in enumerate(texts):
        length = len(text.encode())
        if number > start and (number - start >= TEXTS_PER_CALL or size + length > BYTES_PER_CALL):
            yield texts[start:number]
            start, size = number, 0
        size += length
    if start < len(texts):
        yield texts[start:]


def kept_ids(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], bound: int, split_special: bool
) -> list[list[int]]:
    """Returns the token ids of each text; of a long text the `bound` ids that the tokenizer's truncation side keeps."""
    if tokenizer.truncation_side != "left" or not any(_is_long(tokenizer, text, bound) for text in texts):
        return leading_ids(tokenizer, texts, bound, split_special)
    options = _options(split_special)
    return [_trailing(tokenizer, text, bound, options).ids for text in texts]


def kept_part(tokenizer: PreTrainedTokenizerBase, tokens: np.ndarray, room: int) -> np.ndarray:
    """The first `room` tokens, or the last ones if the tokenizer truncates at the left."""
    return tokens[max(0, len(tokens) - room) :] if tokenizer.truncation_side == "left" else tokens[:room]


def leading_tokens(tokenizer: PreTrainedTokenizerBase, text: str, bound: int) -> Tokens:
    """Returns the first `bound` tokens of a long text, all of another; special tokens in it are special."""
    if not _is_long(tokenizer, text, bound):
        return _all(tokenizer, text, _options(False))
    return _leading(tokenizer, text, bound, _options(False), lambda part: part)


def trailing_tokens(tokenizer: PreTrainedTokenizerBase, text: str, bound: int) -> Tokens:
    """Returns the last `bound` tokens of a long text, all of another; special tokens in it are special."""
    return _trailing(tokenizer, text, bound, _options(False))


def _trailing(tokenizer: PreTrainedTokenizerBase, text: str, bound: int, options: dict[str, object]) -> Tokens:
    if _is_long(tokenizer, text, bound):
        for size in _sizes(text, bound):
            begins = BORDER.search(text, len(text) - size, len(text) - MARGIN)
            ids, starts = _without_first_word(tokenizer, text[begins.end() :], options) if begins else ([], [])
            if begins and len(ids) >= bound:
                return Tokens(ids[-bound:], [begins.end() + start for start in starts[-bound:]])
    ids, starts = _all(tokenizer, text, options)
    return Tokens(ids[-bound:], starts[-bound:])


def _ids(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], split_special: bool, options: Mapping[str, object]
) -> list[list[int]]:
    """The token ids of each text. Tokenizers that encode as transformers' base class does are called directly, without
    the offsets and masks that it computes: 1.2 to 1.8 times as fast (LOG.md, 2026-11-28)."""
    if getattr(type(tokenizer), "_encode_plus", None) is not TokenizersBackend._encode_plus:
        encoded: Any = tokenizer(list(texts), return_attention_mask=False, **options)["input_ids"]
        return encoded
    backend: Any = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = split_special or tokenizer.split_special_tokens
    return [found.ids for found in backend.encode_batch_fast(list(texts), add_special_tokens=False)]


def _options(split_special: bool) -> dict[str, object]:
    options: dict[str, object] = {"add_special_tokens": False, "truncation": False, "verbose": False}
    return {**options, "split_special_tokens": True} if split_special else options


def _is_long(tokenizer: PreTrainedTokenizerBase, text: str, bound: int) -> bool:
    return len(text) > CHARACTERS_PER_TOKEN * bound and tokenizer.is_fast


def _sizes(text: str, bound: int) -> Iterator[int]:
    """Sizes of parts of a text in characters, each twice the one before."""
    size = CHARACTERS_PER_TOKEN * bound
    while size < len(text):
        yield size
        size *= 2


def _leading(
    tokenizer: PreTrainedTokenizerBase, text: str, bound: int, options: dict[str, object], prepare: Callable[[str], str]
) -> Tokens:
    """Returns the first `bound` tokens of a text from the shortest prefix, doubled each time, that decides them."""
    for size in _sizes(text, bound):
        blank = max(text.rfind(letter, size // 2, size) for letter in " \n")
        ids, starts = _decided(tokenizer, prepare(text[: blank if blank > 0 else size]), options)
        if len(ids) >= bound:
            return Tokens(ids[:bound], starts[:bound])
    ids, starts = _all(tokenizer, prepare(text), options)
    return Tokens(ids[:bound], starts[:bound])


def _all(tokenizer: PreTrainedTokenizerBase, text: str, options: dict[str, object]) -> Tokens:
    """Every token of a text; without a fast tokenizer, characters stand for the places of tokens."""
    if not tokenizer.is_fast:
        return Tokens(tokenizer(text, return_attention_mask=False, **options)["input_ids"], list(range(len(text))))
    encoding = tokenizer(text, return_attention_mask=False, **options).encodings[0]
    return Tokens(list(encoding.ids), [start for start, _ in encoding.offsets])


def _decided(tokenizer: PreTrainedTokenizerBase, prefix: str, options: dict[str, object]) -> Tokens:
    """Returns the tokens of a prefix that no text behind it can change.

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
    return Tokens(list(encoding.ids[:end]), [start for start, _ in offsets[:end]])


def _without_first_word(tokenizer: PreTrainedTokenizerBase, suffix: str, options: dict[str, object]) -> Tokens:
    """Returns the tokens of a suffix, which begins at a border of words, behind its first word.

    The first word of a text may get a blank in front, which it has not inside of one.
    """
    encoding = tokenizer(suffix, return_attention_mask=False, **options).encodings[0]
    words, offsets = encoding.word_ids, encoding.offsets
    first = next((n for n, place in enumerate(offsets) if place[0] > MARGIN and words[n] != words[n - 1]), len(words))
    return Tokens(list(encoding.ids[first:]), [start for start, _ in offsets[first:]])
