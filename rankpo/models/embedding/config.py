"""EmbeddingKind: the configuration of bi-encoders."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rankpo.errors import LoadingError
from rankpo.models.embedding.reading import layer_folders, read_folder
from rankpo.models.embedding.settings import AUTO, EmbeddingSettings
from rankpo.models.kind import ModelKind, Say
from rankpo.models.settings import Settings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rankpo.models.embedding.inputs import EmbeddingInputs
    from rankpo.models.embedding.model import EmbeddingModel
    from rankpo.models.embedding.saving import EmbeddingFolder
    from rankpo.models.saved import Stated

PRIOR_KEYS = ("prior_layers", "prior_weight")


@dataclass(frozen=True, kw_only=True)
class EmbeddingKind(EmbeddingSettings, ModelKind["EmbeddingSettings", "EmbeddingInputs", "EmbeddingModel"]):
    """A bi-encoder: one vector per text.

    Settings in a folder's files (rankpo.json, or those of sentence-transformers) override the yaml, and the command
    line overrides both. As an exception, the yaml can add a prior to a folder without one.
    prior_lr: the learning rate of the prior; None uses the optimizer's.
    """

    kind: ClassVar[str] = "embedding"
    gives: ClassVar[frozenset[str]] = frozenset({"vectors"})
    settings_class: ClassVar[type[Settings]] = EmbeddingSettings

    pooling: str = AUTO
    prior_lr: float | None = None

    def __post_init__(self) -> None:
        ModelKind.__post_init__(self)
        if self.prior_lr is not None and not self.prior_lr > 0:
            raise ValueError(f"prior_lr must be > 0 or null, got {self.prior_lr}")

    def make_inputs(self, tokenizer: PreTrainedTokenizerBase, settings: EmbeddingSettings, say: Say) -> EmbeddingInputs:
        from rankpo.models.embedding.inputs import EmbeddingInputs

        if self.pooling == AUTO and not self._states_pooling():
            say(
                f"{self.origin}: the checkpoint states no pooling, so {settings.pooling} is used for its architecture; "
                "set model.pooling to change it"
            )
        return EmbeddingInputs(tokenizer, settings)

    def _states_pooling(self) -> bool:
        """Whether the checkpoint states its pooling; also true for random weights."""
        stated = None if self.is_random else self._statement(Path(self.source().folder))
        return self.is_random or (stated is not None and "pooling" in stated.values)

    def decided(self, settings: EmbeddingSettings) -> EmbeddingSettings:
        """Resolves pooling=auto: `last` for causal decoders, whose last token alone attends to the whole text."""
        if settings.pooling != AUTO:
            return settings
        return replace(settings, pooling="last" if self.decodes() and not settings.bidirectional else "mean")

    def load(self, inputs: EmbeddingInputs, say: Say) -> PreTrainedModel:
        from rankpo.models.engine.two_way import make_two_way

        backbone = self.backbone(say=say)
        if inputs.settings.bidirectional:
            try:
                make_two_way(backbone)
            except ValueError as error:
                raise LoadingError(f"{self.origin}: {error}") from error
        return backbone

    def wrap(self, backbone: PreTrainedModel, inputs: EmbeddingInputs) -> EmbeddingModel:
        from rankpo.models.embedding.model import EmbeddingModel

        made = EmbeddingModel(
            backbone, inputs, layout=self.layout, chunk_tokens=self.chunk_tokens, prior_lr=self.prior_lr
        )
        if self.is_random:
            return made
        folder = Path(self.source().folder)
        stated = self._statement(folder)
        if stated is not None and stated.values.get("prior_layers"):
            made.read_prior(folder)
        if folders := layer_folders(folder, len(made.layers)):
            made.read_layers(folders)
        return made

    def adapt(self, model: EmbeddingModel) -> PeftModel:
        return self.adapted(model.base, "FEATURE_EXTRACTION")

    def folder_format(self) -> EmbeddingFolder:
        from rankpo.models.embedding.saving import EmbeddingFolder

        return EmbeddingFolder()

    def stated(self, folder: Path) -> Stated | None:
        """Reads rankpo.json, or the files of sentence-transformers."""
        stated = read_folder(folder)
        if stated is None or stated.values.get("prior_layers"):
            return stated
        return replace(stated, values={key: value for key, value in stated.values.items() if key not in PRIOR_KEYS})
