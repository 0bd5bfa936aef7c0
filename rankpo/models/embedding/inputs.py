"""Inputs of an embedding model: each text on its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rankpo.models.embedding.settings import EmbeddingSettings
from rankpo.models.inputs import TextInputs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class EmbeddingInputs(TextInputs):
    """The inputs of `EmbeddingModel`."""

    settings: EmbeddingSettings

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: EmbeddingSettings) -> None:
        super().__init__(tokenizer, settings)
