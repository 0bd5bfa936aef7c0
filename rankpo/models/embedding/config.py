"""The keys of `model=…`, checked without loading anything, and the model they describe."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankpo.models.embedding.settings import AUTO, EmbeddingSettings
from rankpo.models.kind import WeightsConfig, prefer

if TYPE_CHECKING:
    from rankpo.data.batch import EmbeddingInputs
    from rankpo.models.embedding.model import EmbeddingModel


@dataclass(frozen=True, kw_only=True)
class EmbeddingModelConfig(WeightsConfig):
    """A bi-encoder: how it reads and pools texts.

    Settings that a folder carries (rankpo.json, or sentence-transformers' files) win over the yaml, and the command
    line over both.
    """

    kind = "embedding"
    gives = frozenset({"vectors"})
    logps = "candidates"  # a softmax over the candidates of a query

    pooling: str = AUTO
    normalize: bool = True
    query_prompt: str = ""
    passage_prompt: str = ""
    query_max_length: int = 512
    passage_max_length: int = 512
    truncate_dim: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.settings

    @property
    def settings(self) -> EmbeddingSettings:
        names = [item.name for item in fields(EmbeddingSettings)]
        return EmbeddingSettings(**{name: getattr(self, name) for name in names if hasattr(self, name)})

    def open_inputs(self, say: Callable[[str], None], explicit: Collection[str] = ()) -> EmbeddingInputs:
        """Tokenizer and settings, without any weight: data is read and checked with them first.

        explicit: keys given on the command line, which win over those saved in a `load_from` folder.
        """
        from rankpo.data.batch import EmbeddingInputs
        from rankpo.models import loading
        from rankpo.models.embedding.saving import read_settings

        if self._is_random:
            return EmbeddingInputs(loading.byte_tokenizer(), self._decided(self.settings))
        source = self.source()
        settings = self.settings
        saved = read_settings(Path(source.path)) if self.load_from else None
        if saved is not None:
            settings = prefer(saved, settings, explicit, say, source.name)
        return EmbeddingInputs(loading.load_tokenizer(source, self.trust_remote_code), self._decided(settings))

    def _decided(self, settings: EmbeddingSettings) -> EmbeddingSettings:
        """The settings with pooling=auto decided by the architecture of the weights."""
        return settings.for_architecture(self.decodes()) if settings.pooling == AUTO else settings

    def build(
        self, inputs: EmbeddingInputs, say: Callable[[str], None], gradient_checkpointing: bool = False
    ) -> EmbeddingModel:
        """The model on the CPU in float32. Raises LoadingError where weights cannot be found or read."""
        from rankpo.models.base import freeze_pooler
        from rankpo.models.embedding.model import EmbeddingModel

        backbone = self._backbone()
        model = EmbeddingModel(
            backbone, inputs.tokenizer, inputs.settings, layout=self.layout, chunk_tokens=self.chunk_tokens
        )
        if gradient_checkpointing:
            backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if self.use_peft:
            model.backbone = self._adapted(backbone, "FEATURE_EXTRACTION")
            freeze_pooler(backbone)  # its new adapters too: no embedding uses it, and DDP waits for every gradient
        if self.compile:
            model.backbone.compile(dynamic=True)
        say(self.summary(model))
        return model


def saved_kind(folder: Path) -> str:
    """What a folder holds: as rankpo.json says, else by its classification head; all others are embedding models."""
    own, plain = folder / "rankpo.json", folder / "config.json"
    if own.exists():
        return str(json.loads(own.read_text())["kind"])
    architectures = json.loads(plain.read_text()).get("architectures") or [] if plain.exists() else []
    return "reranker" if any(name.endswith("ForSequenceClassification") for name in architectures) else "embedding"


def load_saved(path: str, device: str | None = None) -> Any:
    """See `rankpo.load`."""
    import torch

    from rankpo.models.causal_lm.config import CausalModelConfig
    from rankpo.models.listwise.config import ListwiseModelConfig
    from rankpo.models.loading import LoadingError
    from rankpo.models.reranker.config import RerankerModelConfig
    from rankpo.models.reward_model.config import RewardModelConfig

    if not Path(path).is_dir():
        raise LoadingError(f"{path}: no such folder")
    families: dict[str, Callable[..., Any]] = {
        "embedding": EmbeddingModelConfig,
        "reranker": RerankerModelConfig,
        "listwise": ListwiseModelConfig,
        "causal_lm": CausalModelConfig,
        "reward_model": RewardModelConfig,
    }
    kind = saved_kind(Path(path))
    if kind not in families:
        raise LoadingError(f"{path}/rankpo.json: kind {kind!r}; this version loads {', '.join(families)}")
    config = families[kind](load_from=path)
    quiet: Callable[[str], None] = lambda message: None  # noqa: E731
    model = config.build(config.open_inputs(quiet), quiet)
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
