"""Token ids of parts of a template, of user texts, and of single-token answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def plain_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Ids of user texts, in which names of special tokens are plain text."""
    if not len(texts):  # A tokenizer raises IndexError for no text.
        return []
    encoded: Any = tokenizer(
        list(texts), add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, verbose=False
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def fixed_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Ids of a part of a template, in which names of special tokens become special tokens."""
    return tuple(tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"]) if text else ()


def split_special(tokenizer: PreTrainedTokenizerBase, head: str) -> tuple[str, str]:
    """Splits a head after its last special token. The first part becomes fixed ids; the rest is tokenised with the text."""
    names = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    end = max((head.rfind(name) + len(name) for name in names if name in head), default=0)
    return head[:end], head[end:]


def answer_ids(tokenizer: PreTrainedTokenizerBase, words: Sequence[str], tail: str) -> tuple[int, ...]:
    """The token id of each answer directly after `tail`, the real end of the prompt.

    Raises ValueError with the words that are not single tokens there, or whose tokens are equal, unknown or special.
    """
    start = fixed_ids(tokenizer, tail)
    ids = []
    for word in words:
        full = fixed_ids(tokenizer, tail + word)
        if len(full) != len(start) + 1 or full[: len(start)] != start or full[-1] in tokenizer.all_special_ids:
            raise ValueError(
                f"the answer {word!r} is not one token of its own after {tail[-20:]!r}: {list(full[-4:])}; "
                "set model.yes_word and model.no_word to words that are, or another model.suffix"
            )
        ids.append(full[-1])
    if len(set(ids)) < len(ids):
        raise ValueError(f"the answers {', '.join(words)} are the same token {ids[0]}")
    return tuple(ids)
