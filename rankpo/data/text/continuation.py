"""Token ids of texts that continue another text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBES = ("because", " because", "the)", "(1)", "\nNext")
# Contexts for tokenising a continuation, tried in this order until one does not merge with the text.
CONTEXTS = ("\n", ":", ")", "a", "0")


class Continuation:
    """How a tokenizer reads a text behind another one.

    Some tokenizers (Llama 2, Mistral) put a blank in front of every text, so that a completion tokenised on its own
    would decode with a blank that its text does not have. There, texts are tokenised behind a short context whose
    tokens are taken off again.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer: Any = tokenizer
        self._bases = {context: self.whole([context])[0] for context in CONTEXTS}
        behind = self._behind(list(PROBES), CONTEXTS[0])
        self.changes_starts = any(ids != alone for ids, alone in zip(behind, self.whole(PROBES), strict=True))

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts that stand behind others; special tokens in them are special."""
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
        if not texts:
            return []
        # verbose: no warning for texts longer than the model, which are cut later
        encoded = self.tokenizer(
            list(texts), add_special_tokens=False, truncation=False, return_attention_mask=False, verbose=False
        )
        return encoded["input_ids"]

    def _behind(self, texts: Sequence[str], context: str) -> list[list[int] | None]:
        """Ids of texts behind a context; None where a token covers the border."""
        base = self._bases[context]
        whole = self.whole([context + text for text in texts])
        return [ids[len(base) :] if ids[: len(base)] == base else None for ids in whole]
