"""LateInteractionKind: the configuration of models with one vector per token, compared by MaxSim."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rankpo.losses.temperature import COSINES, PRODUCTS
from rankpo.models.kind import ModelKind, Say
from rankpo.models.late_interaction.settings import INLINE, SIMILARITIES, LateInteractionSettings
from rankpo.models.saved import RECORD, read_json, saved_kind
from rankpo.models.settings import Settings
from rankpo.models.st_folders import GENERAL

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rankpo.models.late_interaction.inputs import LateInteractionInputs
    from rankpo.models.late_interaction.model import LateInteractionModel
    from rankpo.models.late_interaction.saving import LateInteractionFolder
    from rankpo.models.saved import Stated


@dataclass(frozen=True, kw_only=True)
class LateInteractionKind(
    LateInteractionSettings, ModelKind["LateInteractionSettings", "LateInteractionInputs", "LateInteractionModel"]
):
    """A multi-vector encoder (ColBERT): one vector per token.

    Settings in a folder's files (rankpo.json, or those of sentence-transformers, PyLate and Stanford ColBERT) override
    the yaml, and the command line overrides both.
    """

    kind: ClassVar[str] = "late_interaction"
    gives: ClassVar[frozenset[str]] = frozenset({"vectors"})
    settings_class: ClassVar[type[Settings]] = LateInteractionSettings
    starts_from: ClassVar[frozenset[str]] = frozenset({"embedding"})

    def __post_init__(self) -> None:
        ModelKind.__post_init__(self)

    def make_inputs(
        self, tokenizer: PreTrainedTokenizerBase, settings: LateInteractionSettings, say: Say
    ) -> LateInteractionInputs:
        from rankpo.models.late_interaction import inputs, reading

        if not self.is_random:
            reading.single_markers(Path(self.source().folder), tokenizer, settings)
        made = inputs.LateInteractionInputs(tokenizer, settings)
        if made.unknown_words:
            say(
                f"{self.origin}: model.skip lists {', '.join(made.unknown_words)}, but the tokenizer has no such "
                "tokens; these entries have no effect"
            )
        return made

    def load(self, inputs: LateInteractionInputs, say: Say) -> PreTrainedModel:
        # Stanford ColBERT stores the projection with the weights of the encoder; `wrap` reads it.
        return self.backbone(say=lambda line: None if INLINE in line else say(line))

    def wrap(self, backbone: PreTrainedModel, inputs: LateInteractionInputs) -> LateInteractionModel:
        from rankpo.models.late_interaction import model, reading

        made = model.LateInteractionModel(backbone, inputs, layout=self.layout, chunk_tokens=self.chunk_tokens)
        if not self.is_random:
            reading.read_projection(Path(self.source().folder), made.layers)
        return made

    def adapt(self, model: LateInteractionModel) -> PeftModel:
        model.keep_start()
        return self.adapted(model.base, "FEATURE_EXTRACTION")

    def folder_format(self) -> LateInteractionFolder:
        from rankpo.models.late_interaction.saving import LateInteractionFolder

        return LateInteractionFolder()

    def scale(self, settings: Settings) -> str:
        assert isinstance(settings, LateInteractionSettings)
        return COSINES if settings.normalize and settings.normalize_scores else PRODUCTS

    def early_statement(self, folder: Path) -> Mapping[str, object]:
        if (folder / RECORD).exists() or saved_kind(folder) != self.kind:
            return super().early_statement(folder)
        name = read_json(folder / GENERAL).get("similarity_fn_name")
        return {"normalize_scores": SIMILARITIES.get(name, False)}

    def stated(self, folder: Path) -> Stated | None:
        from rankpo.models.late_interaction.reading import read_folder

        return read_folder(folder)
