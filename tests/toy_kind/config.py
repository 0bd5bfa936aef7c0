"""The kind `toy`: the keys of its yaml, and how its model is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rankpo.models.kind import ModelKind, Say
from tests.toy_kind.settings import ToySettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rankpo.models.inputs import TextInputs
    from tests.toy_kind.model import ToyModel
    from tests.toy_kind.saving import ToyFolder


@dataclass(frozen=True, kw_only=True)
class ToyKind(ToySettings, ModelKind):
    """One vector a text: the largest value of each dimension over its tokens."""

    kind: ClassVar[str] = "toy"
    gives: ClassVar[frozenset[str]] = frozenset({"vectors"})
    settings_class: ClassVar[type[ToySettings]] = ToySettings

    def __post_init__(self) -> None:
        ModelKind.__post_init__(self)

    def make_inputs(self, tokenizer: PreTrainedTokenizerBase, settings: ToySettings, say: Say) -> TextInputs:
        from rankpo.models.inputs import TextInputs

        return TextInputs(tokenizer, settings)

    def load(self, inputs: TextInputs, say: Say) -> PreTrainedModel:
        return self.backbone()

    def wrap(self, backbone: PreTrainedModel, inputs: TextInputs) -> ToyModel:
        from tests.toy_kind.model import ToyModel

        return ToyModel(backbone, inputs, layout=self.layout, chunk_tokens=self.chunk_tokens)

    def adapt(self, model: ToyModel) -> Any:
        return self.adapted(model.base, "FEATURE_EXTRACTION")

    def folder_format(self) -> ToyFolder:
        from tests.toy_kind.saving import ToyFolder

        return ToyFolder()
