"""ListwiseKind: the configuration of language models that order the passages of one prompt."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rankpo.data.text.prompt_templates import read_template
from rankpo.data.text.rendering import template_text
from rankpo.models.kind import ModelKind, Say
from rankpo.models.listwise.settings import ListwiseKeys, ListwiseSettings
from rankpo.models.saved import Stated, own_statement, saved_kind
from rankpo.models.settings import Settings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rankpo.models.listwise.inputs import ListwiseInputs
    from rankpo.models.listwise.model import ListwiseModel
    from rankpo.models.listwise.saving import ListwiseFolder


@dataclass(frozen=True, kw_only=True)
class ListwiseKind(ListwiseKeys, ModelKind["ListwiseSettings", "ListwiseInputs", "ListwiseModel"]):
    """A listwise reranker: its prompt, windows and decoding.

    prompt: the name of a shipped template, or a yaml file in rankpo's or RankLLM's format. neftune_alpha: noise on
    input embeddings in training. Settings in a folder's rankpo.json override the yaml, and the command line overrides
    both.
    """

    kind: ClassVar[str] = "listwise"
    decoders_only: ClassVar[bool] = True
    gives: ClassVar[frozenset[str]] = frozenset({"lists"})
    settings_class: ClassVar[type[Settings]] = ListwiseSettings
    starts_from: ClassVar[frozenset[str]] = frozenset({"causal_lm"})

    prompt: str = "letters"
    neftune_alpha: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "chat_template", template_text(self.chat_template))
        ModelKind.__post_init__(self)
        if not self.neftune_alpha >= 0:
            raise ValueError(f"neftune_alpha must be >= 0, got {self.neftune_alpha}")

    @property
    def settings(self) -> ListwiseSettings:
        own = {item.name: getattr(self, item.name) for item in fields(ListwiseKeys)}
        return ListwiseSettings(template=read_template(self.prompt).to_json(), **own)

    def make_inputs(self, tokenizer: PreTrainedTokenizerBase, settings: ListwiseSettings, say: Say) -> ListwiseInputs:
        """Raises ValueError for identifiers that are not single tokens."""
        from rankpo.models.listwise.inputs import ListwiseInputs

        inputs = ListwiseInputs(tokenizer, settings)
        for note in (*inputs.layout.chat.notes, *inputs.layout.notes):
            say(note)
        own = inputs.layout.identifiers
        shown = (
            ""
            if own.canonical
            else ", built from separate tokens, so that free generation may tokenise an answer differently"
        )
        say(
            f"identifiers {own.scheme} {own.open}{own.labels[0]}{own.close} to {own.open}{own.labels[-1]}{own.close}{shown}"
        )
        return inputs

    def decided(self, settings: ListwiseSettings) -> ListwiseSettings:
        self.require_decoder()
        return settings

    def load(self, inputs: ListwiseInputs, say: Say) -> PreTrainedModel:
        from rankpo.models.families import CAUSAL_LM

        return self.backbone(CAUSAL_LM)

    def wrap(self, backbone: PreTrainedModel, inputs: ListwiseInputs) -> ListwiseModel:
        from rankpo.models.listwise.model import ListwiseModel

        return ListwiseModel(
            backbone,
            inputs,
            layout=self.layout,
            chunk_tokens=self.chunk_tokens,
            neftune_alpha=self.neftune_alpha,
        )

    def adapt(self, model: ListwiseModel) -> PeftModel:
        return self.adapted(model.base, "CAUSAL_LM")

    def stated(self, folder: Path) -> Stated | None:
        """Returns None for a causal_lm, from whose weights a listwise reranker can start."""
        return None if saved_kind(folder) in self.starts_from else own_statement(folder, (self.kind,), ListwiseSettings)

    def folder_format(self) -> ListwiseFolder:
        from rankpo.models.listwise.saving import ListwiseFolder

        return ListwiseFolder()
