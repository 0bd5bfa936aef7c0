"""EmbeddingKind: the configuration of bi-encoders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rankpo.errors import ConfigError, LoadingError
from rankpo.losses.temperature import COSINES, PRODUCTS
from rankpo.models.embedding.reading import PLAIN, layer_folders, read_folder
from rankpo.models.embedding.settings import AUTO, EmbeddingSettings
from rankpo.models.kind import ModelKind, Say
from rankpo.models.saved import Stated
from rankpo.models.settings import Settings
from rankpo.models.st_folders import plain_lengths

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rankpo.models.embedding.inputs import EmbeddingInputs
    from rankpo.models.embedding.model import EmbeddingModel
    from rankpo.models.embedding.saving import EmbeddingFolder

# Parts that a folder may lack, with their keys: the yaml can then add them.
ADDED = {"prior_layers": ("prior_layers", "prior_weight"), "layers": ("layers",), "pooled_layers": ("pooled_layers",)}


@dataclass(frozen=True, kw_only=True)
class EmbeddingKind(EmbeddingSettings, ModelKind["EmbeddingSettings", "EmbeddingInputs", "EmbeddingModel"]):
    """A bi-encoder: one vector per text.

    Settings that a folder states (rankpo.json, or sentence-transformers' files) win over the yaml, and the command
    line over both. A folder without a prior or layers does not: the yaml can add them.
    prior_lr: the learning rate of the prior, None for the optimizer's. freeze_backbone: only the layers after the pooling
    and the prior are trained, and the pooled states of each text are computed once and kept.
    """

    kind: ClassVar[str] = "embedding"
    gives: ClassVar[frozenset[str]] = frozenset({"vectors"})
    settings_class: ClassVar[type[Settings]] = EmbeddingSettings
    takes_static: ClassVar[bool] = True

    pooling: str = AUTO
    prior_lr: float | None = None
    freeze_backbone: bool = False

    def __post_init__(self) -> None:
        ModelKind.__post_init__(self)
        if self.prior_lr is not None and not self.prior_lr > 0:
            raise ValueError(f"prior_lr must be > 0 or null, got {self.prior_lr}")
        if self.freeze_backbone and self.use_peft:
            raise ValueError("freeze_backbone=true trains no adapters, and use_peft is true; set one of them to false")

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
        from rankpo.models.engine.two_way import make_one_way, make_two_way

        backbone = self.backbone(say=say)
        if not inputs.settings.bidirectional:
            make_one_way(backbone)
            return backbone
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
        known = {} if stated is None else stated.values
        if known.get("prior_layers"):
            made.read_prior(folder)
        if made.settings.layers and stated is not None and not known.get("layers"):
            made.start_layers()  # The folder has none: they are new.
        elif folders := layer_folders(folder, len(made.layers), inputs.settings):
            made.read_layers(folders)
        return made

    def finish(self, model: EmbeddingModel, needs: frozenset[str], say: Say) -> None:
        if not self.freeze_backbone:
            return
        model.freeze_backbone()
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ConfigError(
                [
                    "model.freeze_backbone=true leaves nothing to train; add layers, such as "
                    "model.layers=[{type:Dense,out_features:384,activation:Identity,bias:false}], or model.prior_layers"
                ]
            )

    def adapt(self, model: EmbeddingModel) -> PeftModel:
        return self.adapted(model.base, "FEATURE_EXTRACTION")

    def folder_format(self) -> EmbeddingFolder:
        from rankpo.models.embedding.saving import EmbeddingFolder

        return EmbeddingFolder()

    def scale(self, settings: Settings) -> str:
        assert isinstance(settings, EmbeddingSettings)
        return COSINES if settings.normalize else PRODUCTS

    def early_statement(self, folder: Path) -> Mapping[str, object]:
        stated = self.stated(folder)
        return {} if stated is None else stated.values

    def stated(self, folder: Path) -> Stated | None:
        """Reads rankpo.json, or the files of sentence-transformers."""
        stated = read_folder(folder)
        if stated is None or stated.source == PLAIN:
            lengths = {"query_max_length": self.query_max_length, "passage_max_length": self.passage_max_length}
            values = {**plain_lengths(folder, lengths), **({} if stated is None else stated.values)}
            return Stated(values=values, source=PLAIN) if values else None
        absent = {key for part, keys in ADDED.items() if not stated.values.get(part) for key in keys}
        return replace(stated, values={key: value for key, value in stated.values.items() if key not in absent})
