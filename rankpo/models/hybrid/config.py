"""HybridKind: the configuration of models with dense, sparse and token vectors of one encoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rankpo.models.hybrid.settings import HybridSettings
from rankpo.models.kind import ModelKind, Say
from rankpo.models.saved import Stated, own_statement
from rankpo.models.settings import Settings
from rankpo.models.st_folders import start_of

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rankpo.models.hybrid.model import HybridModel
    from rankpo.models.hybrid.saving import HybridFolder
    from rankpo.models.inputs import TextInputs


@dataclass(frozen=True, kw_only=True)
class HybridKind(HybridSettings, ModelKind["HybridSettings", "TextInputs", "HybridModel"]):
    """BGE-M3's model: one encoder, three scores.

    new_layers: creates the linear layers after the encoder with random weights from the run's seed, for checkpoints
    without them. Settings in a folder's rankpo.json override the yaml, and the command line overrides both.
    """

    kind: ClassVar[str] = "hybrid"
    gives: ClassVar[frozenset[str]] = frozenset({"vectors", "parts"})
    settings_class: ClassVar[type[Settings]] = HybridSettings
    starts_from: ClassVar[frozenset[str]] = frozenset({"embedding"})

    new_layers: bool = False

    def __post_init__(self) -> None:
        ModelKind.__post_init__(self)

    def make_inputs(self, tokenizer: PreTrainedTokenizerBase, settings: HybridSettings, say: Say) -> TextInputs:
        from rankpo.models.inputs import TextInputs

        return TextInputs(tokenizer, settings)

    def load(self, inputs: TextInputs, say: Say) -> PreTrainedModel:
        return self.backbone(say=say)

    def wrap(self, backbone: PreTrainedModel, inputs: TextInputs) -> HybridModel:
        from rankpo.models.hybrid import layers, model

        made = model.HybridModel(backbone, inputs, layout=self.layout, chunk_tokens=self.chunk_tokens)
        if not self.is_random:
            layers.read_layers(made, Path(self.source().folder), self.new_layers)
        return made

    def adapt(self, model: HybridModel) -> PeftModel:
        return self.adapted(model.base, "FEATURE_EXTRACTION")

    def stated(self, folder: Path) -> Stated | None:
        """Reads rankpo.json, or the prompts of an embedding model."""
        whole = (folder / "sparse_linear.safetensors").exists()
        start = None if whole else start_of(folder, "new layers for token weights and token vectors")
        return start or own_statement(folder, (self.kind,), HybridSettings)

    def folder_format(self) -> HybridFolder:
        from rankpo.models.hybrid.saving import HybridFolder

        return HybridFolder()
