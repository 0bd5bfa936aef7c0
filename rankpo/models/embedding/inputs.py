"""Inputs of an embedding model, which encodes each text separately."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from rankpo.data.table import ExampleTable
from rankpo.models.embedding.settings import EmbeddingSettings
from rankpo.models.inputs import TextInputs
from rankpo.types import Sequences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class EmbeddingInputs(TextInputs):
    """The inputs of `EmbeddingModel`.

    With include_prompt=false or with a prior, `Sequences.prefixes` has two columns: 1 for a query and 0 for a passage,
    and the number of tokens before the text (special tokens and prompt) that are not pooled.
    """

    settings: EmbeddingSettings

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: EmbeddingSettings) -> None:
        super().__init__(tokenizer, settings)

    @property
    def roles_alike(self) -> bool:
        """False with a prior, which only passages have, and if pooling excludes the prompt."""
        return super().roles_alike and not self._needs_roles

    @property
    def _needs_roles(self) -> bool:
        return bool(self.settings.prior_layers) or not (self.settings.include_prompt or not self._prompts)

    @property
    def _prompts(self) -> bool:
        return bool(self.settings.query_prompt or self.settings.passage_prompt)

    def sequences(self, table: ExampleTable, keys: Sequence[tuple[int, str]]) -> Sequences:
        return self._with_prompts(super().sequences(table, keys), [role for _, role in keys])

    def sequences_of(self, texts: Sequence[str], role: str) -> Sequences:
        return self._with_prompts(super().sequences_of(texts, role), [role] * len(texts))

    def _with_prompts(self, sequences: Sequences, roles: Sequence[str]) -> Sequences:
        if not self._needs_roles:
            return sequences
        sizes = {role: self._size_of_prompt(role) for role in set(roles)}
        numbers = np.array([[int(role == "query"), sizes[role]] for role in roles], dtype=np.int64).reshape(-1, 2)
        return replace(sequences, prefixes=torch.from_numpy(numbers))

    def _size_of_prompt(self, role: str) -> int:
        """Returns the number of tokens before the text. Tokenises the prompt alone, as sentence-transformers does."""
        prompt = "" if self.settings.include_prompt else self.prompt(role)
        return len(self.special.head) + len(self.tokenize([prompt])[0]) if prompt else 0
