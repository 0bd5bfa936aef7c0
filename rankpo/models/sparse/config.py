"""SparseKind: the configuration of models with a weight for each entry of the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rankpo.errors import ConfigError
from rankpo.losses.sparsity import Sparsity
from rankpo.losses.temperature import PRODUCTS
from rankpo.models.kind import ModelKind, Say
from rankpo.models.settings import Settings
from rankpo.models.sparse.reading import read_folder
from rankpo.models.sparse.settings import SparseSettings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rankpo.models.saved import Stated
    from rankpo.models.sparse.inputs import SparseInputs
    from rankpo.models.sparse.model import SparseModel
    from rankpo.models.sparse.saving import SparseFolder


@dataclass(frozen=True, kw_only=True)
class SparseKind(SparseSettings, ModelKind["SparseSettings", "SparseInputs", "SparseModel"]):
    """A sparse encoder (SPLADE): weights over the vocabulary by a masked-language head, compared by inner products.

    query_weights: a JSON file with initial weights of tokens for static queries, such as OpenSearch's idf.json; None
    uses the weights of a loaded folder, or 1 for every token. new_head: creates a masked-language head with random
    weights from the run's seed, for checkpoints without one. regularizer: terms on the activations that are added to
    any loss. Settings in a folder's files (rankpo.json, or those of sentence-transformers) override the yaml, and the
    command line overrides both.
    """

    kind: ClassVar[str] = "sparse"
    gives: ClassVar[frozenset[str]] = frozenset({"vectors"})
    settings_class: ClassVar[type[Settings]] = SparseSettings
    starts_from: ClassVar[frozenset[str]] = frozenset({"embedding"})

    query_weights: str | None = None
    regularizer: Sparsity = field(default_factory=Sparsity)
    new_head: bool = False

    def __post_init__(self) -> None:
        ModelKind.__post_init__(self)
        if self.query_weights is not None and not Path(self.query_weights).is_file():
            raise ValueError(f"query_weights={self.query_weights}: no such file")

    def decided(self, settings: SparseSettings) -> SparseSettings:
        """Raises ConfigError for decoders, and for query_weights without static queries."""
        if self.decodes():
            raise ConfigError(
                [
                    f"{self.origin} is a decoder, but kind=sparse needs an encoder with a masked-language head; "
                    "choose another model, such as model=modernbert, or set kind=embedding"
                ]
            )
        if self.query_weights is not None and settings.query_encoder != "static":
            raise ConfigError(["model.query_weights needs model.query_encoder=static"])
        return settings

    def make_inputs(self, tokenizer: PreTrainedTokenizerBase, settings: SparseSettings, say: Say) -> SparseInputs:
        from rankpo.models.sparse.inputs import SparseInputs

        return SparseInputs(tokenizer, settings)

    def load(self, inputs: SparseInputs, say: Say) -> PreTrainedModel:
        from rankpo.models.sparse.loading import MaskedFamily

        family = MaskedFamily(self.origin, self.new_head)
        backbone = self.backbone(family, say)
        if family.missing:
            say(f"initialised at random from the run's seed: {', '.join(sorted(family.missing))}")
        return backbone

    def wrap(self, backbone: PreTrainedModel, inputs: SparseInputs) -> SparseModel:
        from rankpo.models.sparse.loading import read_query_weights
        from rankpo.models.sparse.model import SparseModel

        model = SparseModel(backbone, inputs, layout=self.layout, chunk_tokens=self.chunk_tokens)
        folder = None if self.is_random else Path(self.source().folder)
        read_query_weights(model, self.query_weights, folder)
        # Static queries have one trained weight per token and no activations to regularise.
        model.sparsity = replace(self.regularizer, query_weight=0.0) if inputs.static else self.regularizer
        return model

    def adapt(self, model: SparseModel) -> PeftModel:
        return self.adapted(model.base, "FEATURE_EXTRACTION")

    def scale(self, settings: Settings) -> str:
        return PRODUCTS

    def folder_format(self) -> SparseFolder:
        from rankpo.models.sparse.saving import SparseFolder

        return SparseFolder()

    def stated(self, folder: Path) -> Stated | None:
        """Reads rankpo.json, or the files of a SparseEncoder."""
        return read_folder(folder)
