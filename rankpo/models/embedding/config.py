"""The kind `embedding`: a bi-encoder, as the keys of its yaml describe it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rankpo.models.embedding.settings import AUTO, EmbeddingSettings
from rankpo.models.kind import ModelKind, Say
from rankpo.models.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rankpo.models.embedding.inputs import EmbeddingInputs
    from rankpo.models.embedding.model import EmbeddingModel
    from rankpo.models.embedding.saving import EmbeddingFolder


@dataclass(frozen=True, kw_only=True)
class EmbeddingKind(EmbeddingSettings, ModelKind):
    """A bi-encoder: one vector per text.

    Settings that a folder states (rankpo.json, or sentence-transformers' files) win over the yaml, and the command
    line over both.
    """

    kind: ClassVar[str] = "embedding"
    gives: ClassVar[frozenset[str]] = frozenset({"vectors"})
    settings_class: ClassVar[type[Settings]] = EmbeddingSettings

    pooling: str = AUTO

    def __post_init__(self) -> None:
        ModelKind.__post_init__(self)

    def make_inputs(self, tokenizer: PreTrainedTokenizerBase, settings: EmbeddingSettings, say: Say) -> EmbeddingInputs:
        from rankpo.models.embedding.inputs import EmbeddingInputs

        return EmbeddingInputs(tokenizer, settings)

    def decided(self, settings: EmbeddingSettings) -> EmbeddingSettings:
        """With pooling=auto decided: only the last token of a decoder has read the whole text."""
        if settings.pooling != AUTO:
            return settings
        return replace(settings, pooling="last" if self.decodes() else "mean")

    def load(self, inputs: EmbeddingInputs, say: Say) -> PreTrainedModel:
        return self.backbone()

    def wrap(self, backbone: PreTrainedModel, inputs: EmbeddingInputs) -> EmbeddingModel:
        from rankpo.models.embedding.model import EmbeddingModel

        return EmbeddingModel(backbone, inputs, layout=self.layout, chunk_tokens=self.chunk_tokens)

    def adapt(self, model: EmbeddingModel) -> Any:
        return self.adapted(model.base, "FEATURE_EXTRACTION")

    def folder_format(self) -> EmbeddingFolder:
        from rankpo.models.embedding.saving import EmbeddingFolder

        return EmbeddingFolder()

    def saved_settings(self, folder: Path) -> EmbeddingSettings | None:
        from rankpo.models.embedding.saving import read_settings

        return read_settings(folder)
