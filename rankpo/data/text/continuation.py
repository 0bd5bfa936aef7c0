"""Continuations: token ids of texts that follow another text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rankpo.data.text.long_texts import CHARACTERS_PER_TOKEN, leading_ids, leading_tokens, trailing_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBES = ("because", " because", "the)", "(1)", "\nNext")
# Contexts for tokenising a continuation, tried in this order until one does not merge with the text.
CONTEXTS = ("\n", ":", ")", "a", "0")


class Continuation:
    """How a tokenizer reads a text behind another one.

    Some tokenizers (Llama 2, Mistral) put a blank in front of every text, so that a completion tokenised on its own
    would decode with a blank that its text does not have. There, texts are tokenised behind a short context whose
    tokens are taken off again. bound: tokens of a long text that are kept, from its beginning.
    num_first: tokens that `ends` keeps of it besides the last `bound`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, bound: int, num_first: int = 1) -> None:
        self.tokenizer = tokenizer
        self.bound = bound
        self.num_first = num_first
        self._bases = {context: self.whole([context])[0] for context in CONTEXTS}
        behind = self._behind(list(PROBES), CONTEXTS[0])
        self.changes_starts = any(ids != alone for ids, alone in zip(behind, self.whole(PROBES), strict=True))

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts that follow other texts. Names of special tokens in them become special tokens."""
        alone = self.whole(texts)
        if not self.changes_starts:
            return alone
        found: dict[int, list[int]] = {}
        for context in CONTEXTS:
            left = [number for number in range(len(texts)) if number not in found]
            behind = self._behind([texts[number] for number in left], context)
            found |= {number: ids for number, ids in zip(left, behind, strict=True) if ids is not None}
        return [found.get(number, ids) for number, ids in enumerate(alone)]

    def whole(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns token ids of texts without a preceding context."""
        return leading_ids(self.tokenizer, texts, self.bound, split_special=False)

    def ends(self, texts: Sequence[str]) -> list[list[int]]:
        """`whole` for texts that are cut at their beginning: of a long one the first tokens and the last."""
        long = {n for n, text in enumerate(texts) if len(text) > CHARACTERS_PER_TOKEN * self.bound}
        rest = iter(self.whole([text for n, text in enumerate(texts) if n not in long]))
        return [self._ends_of(text) if n in long else next(rest) for n, text in enumerate(texts)]

    def _ends_of(self, text: str) -> list[int]:
        first = leading_tokens(self.tokenizer, text, self.bound).ids[: self.num_first]
        return [*first, *trailing_tokens(self.tokenizer, text, self.bound).ids]

    def _behind(self, texts: Sequence[str], context: str) -> list[list[int] | None]:
        """Ids of texts after a context; None if a token spans the border."""
        base = self._bases[context]
        whole = self.whole([context + text for text in texts])
        return [ids[len(base) :] if ids[: len(base)] == base else None for ids in whole]
