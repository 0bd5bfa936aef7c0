"""Inputs of a sparse model, which encodes each text separately."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from rankpo.data.table import ExampleTable
from rankpo.data.text.long_texts import kept_part
from rankpo.models.inputs import TextInputs
from rankpo.models.sparse.settings import SparseSettings
from rankpo.types import Sequences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class SparseInputs(TextInputs):
    """The inputs of `SparseModel`.

    With query_encoder=static, a query has no special tokens, and the first column of `Sequences.prefixes` is 1 for
    queries and 0 for passages.
    """

    settings: SparseSettings

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: SparseSettings) -> None:
        super().__init__(tokenizer, settings)

    @property
    def static(self) -> bool:
        return self.settings.query_encoder == "static"

    @property
    def roles_alike(self) -> bool:
        return super().roles_alike and not self.static

    def kept(self, lengths: np.ndarray, role: str) -> np.ndarray:
        if self.static and role == "query":
            return np.minimum(lengths, self.max_length(role))
        return super().kept(lengths, role)

    def assemble(self, tokens: np.ndarray, role: str) -> np.ndarray:
        if self.static and role == "query":
            return np.asarray(kept_part(self.tokenizer, tokens, self.max_length(role)), dtype=np.int64)
        return super().assemble(tokens, role)

    def sequences(self, table: ExampleTable, keys: Sequence[tuple[int, str]]) -> Sequences:
        return self._with_roles(super().sequences(table, keys), [role for _, role in keys])

    def sequences_of(self, texts: Sequence[str], role: str) -> Sequences:
        return self._with_roles(super().sequences_of(texts, role), [role] * len(texts))

    def _with_roles(self, sequences: Sequences, roles: Sequence[str]) -> Sequences:
        if not self.static:
            return sequences
        numbers = np.array([[int(role == "query"), 0] for role in roles], dtype=np.int64).reshape(-1, 2)
        return replace(sequences, prefixes=torch.from_numpy(numbers))
