"""Special tokens that a tokenizer adds around a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class SpecialTokens:
    """The ids that the tokenizer adds before and after a single text."""

    head: tuple[int, ...]
    tail: tuple[int, ...]

    @classmethod
    def learn(cls, tokenizer: PreTrainedTokenizerBase) -> SpecialTokens:
        """Encodes one word with and without special tokens and compares the ids.

        Raises ValueError if the plain encoding is not a contiguous part of the full one.
        """
        plain = tokenizer("word", add_special_tokens=False)["input_ids"]
        full = tokenizer("word", add_special_tokens=True)["input_ids"]
        for start in range(len(full) - len(plain) + 1):
            if full[start : start + len(plain)] == plain:
                return cls(tuple(full[:start]), tuple(full[start + len(plain) :]))
        raise ValueError(f"the tokenizer alters a text when it adds special tokens: {plain} became {full}")

    def __len__(self) -> int:
        return len(self.head) + len(self.tail)
