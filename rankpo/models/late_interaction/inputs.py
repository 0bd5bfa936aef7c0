"""Inputs of a late-interaction model: token sequences with query expansion, and the tokens that have a vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from rankpo.data.table import ExampleTable
from rankpo.models.inputs import TextInputs
from rankpo.models.late_interaction.settings import LateInteractionSettings
from rankpo.types import Sequences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class LateInteractionInputs(TextInputs):
    """The inputs of `LateInteractionModel`.

    `Sequences.kept` marks the tokens with a vector. `Sequences.attended` excludes the expansion tokens if
    attend_to_expansion is false. unknown_words: words of the skip list that the tokenizer has no token for; they are
    ignored.
    """

    settings: LateInteractionSettings

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: LateInteractionSettings) -> None:
        """Raises ValueError for an expansion token that the tokenizer does not have."""
        super().__init__(tokenizer, settings)
        self.expansion_id = _expansion_id(tokenizer, settings) if settings.expanded_length else None
        numbers = {word: _token_id(tokenizer, word) for word in settings.skip}
        self.unknown_words = tuple(word for word, number in numbers.items() if number is None)
        self.skipped_ids = np.array([number for number in numbers.values() if number is not None], dtype=np.int64)

    @property
    def roles_alike(self) -> bool:
        """False if queries are expanded, or if tokens are skipped in passages only."""
        settings = self.settings
        skips_alike = settings.skip_queries or not len(self.skipped_ids)
        return super().roles_alike and not settings.expanded_length and skips_alike

    def kept(self, lengths: np.ndarray, role: str) -> np.ndarray:
        tokens = super().kept(lengths, role)
        return np.maximum(tokens, self.settings.expanded_length) if role == "query" else tokens

    def sequences(self, table: ExampleTable, keys: Sequence[tuple[int, str]]) -> Sequences:
        return self._finished(super().sequences(table, keys), [role for _, role in keys])

    def sequences_of(self, texts: Sequence[str], role: str) -> Sequences:
        return self._finished(super().sequences_of(texts, role), [role] * len(texts))

    def _finished(self, plain: Sequences, roles: Sequence[str]) -> Sequences:
        """Expands queries, and adds `kept` and `attended`, if any sequence needs them."""
        asked = torch.tensor([role == "query" for role in roles], dtype=torch.bool)
        if self.settings.expanded_length and bool(asked.any()):
            plain = self._expanded(plain, asked)
        if not len(self.skipped_ids):
            return plain
        kept = torch.from_numpy(~np.isin(plain.input_ids.numpy(), self.skipped_ids))
        if not self.settings.skip_queries:
            kept |= asked.repeat_interleave(plain.lengths)
        return replace(plain, kept=kept)

    def _expanded(self, plain: Sequences, asked: torch.Tensor) -> Sequences:
        floor = self.settings.expanded_length
        lengths = torch.where(asked, plain.lengths.clamp(min=floor), plain.lengths)
        ids = torch.full((int(lengths.sum()),), int(self.expansion_id or 0), dtype=torch.int64)
        starts = lengths.cumsum(0) - lengths
        before = plain.lengths.cumsum(0) - plain.lengths
        ids[torch.arange(len(plain.input_ids)) + (starts - before).repeat_interleave(plain.lengths)] = plain.input_ids
        attended = None if self.settings.attend_to_expansion else plain.lengths
        return replace(plain, input_ids=ids, lengths=lengths, attended=attended)


def _expansion_id(tokenizer: PreTrainedTokenizerBase, settings: LateInteractionSettings) -> int:
    token = settings.expansion_token or tokenizer.mask_token or tokenizer.eos_token
    if token is None:
        raise ValueError(
            "query_expansion needs a token, but the tokenizer has neither a mask nor an eos token; set model.expansion_token"
        )
    number = _token_id(tokenizer, str(token))
    if number is None:
        raise ValueError(f"expansion_token={token!r} is not a token of the tokenizer; set model.expansion_token to one")
    return number


def _token_id(tokenizer: PreTrainedTokenizerBase, word: str) -> int | None:
    """The id of a token, or None for a word that the tokenizer splits or does not know."""
    found: list[int | None] = [*tokenizer.convert_tokens_to_ids([word])]  # type: ignore[misc]
    number = found[0]
    if number is None or (number == tokenizer.unk_token_id and word != tokenizer.unk_token):
        return None
    return number
