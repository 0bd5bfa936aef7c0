"""The keys of `model=…` for listwise rerankers, checked without loading anything, and the model they describe."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankpo.data.text.prompt_templates import read_template
from rankpo.data.text.rendering import template_text
from rankpo.models.kind import Say, WeightsConfig
from rankpo.models.listwise.settings import ListwiseSettings

if TYPE_CHECKING:
    from rankpo.models.listwise.inputs import ListwiseInputs
    from rankpo.models.listwise.model import ListwiseModel


@dataclass(frozen=True, kw_only=True)
class ListwiseModelConfig(WeightsConfig):
    """A language model that orders the passages of one prompt: how it reads and answers.

    prompt: the name of a shipped template
    or a yaml file, ours or RankLLM's. Settings that a folder carries (rankpo.json) win over the yaml, and the command
    line over both. The other keys are those of `ListwiseSettings`.
    """

    kind = "listwise"
    gives = frozenset({"lists"})
    starts_from = frozenset({"causal_lm"})
    logps = "candidates"

    prompt: str = "letters"
    window: int = 20
    stride: int = 10
    passes: int = 1
    top_k: int = 100
    max_length: int = 4096
    max_passage_tokens: int = 300
    min_passage_tokens: int = 16
    max_query_tokens: int = 128
    escape_identifiers: bool = True
    chat_template: str | None = None
    decode: str = "first_token"
    reasoning_tokens: int = 0
    neftune_alpha: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.neftune_alpha >= 0:
            raise ValueError(f"neftune_alpha must be >= 0, got {self.neftune_alpha}")
        object.__setattr__(self, "chat_template", template_text(self.chat_template))
        _ = self.settings

    @property
    def settings(self) -> ListwiseSettings:
        own = {item.name: getattr(self, item.name) for item in fields(ListwiseSettings) if item.name != "template"}
        return ListwiseSettings(template=read_template(self.prompt).to_json(), **own)

    def open_inputs(self, say: Say, explicit: Collection[str] = ()) -> ListwiseInputs:
        """Tokenizer and settings, without any weight; the identifiers are proved here.

        Raises LoadingError for identifiers that the tokenizer does not keep as single tokens.
        """
        from rankpo.models import loading
        from rankpo.models.listwise.inputs import ListwiseInputs

        self._require_decoder()
        settings = self.settings
        if self._is_random:
            tokenizer: Any = loading.byte_tokenizer()
        else:
            source = self.source()
            saved = read_listwise_settings(Path(source.path)) if self.load_from else None
            if saved is not None:
                settings = _prefer(saved, settings, explicit, say, source.name)
            tokenizer = loading.load_tokenizer(source, self.trust_remote_code)
        try:
            inputs = ListwiseInputs(tokenizer, settings)
        except ValueError as error:
            raise loading.LoadingError(f"{self.origin}: {error}") from error
        for note in (*inputs.layout.chat.notes, *inputs.layout.notes):
            say(note)
        own = inputs.layout.identifiers
        shown = "" if own.canonical else ", from separate pieces: free generation may tokenise an answer otherwise"
        say(
            f"identifiers {own.scheme} {own.open}{own.labels[0]}{own.close} to {own.open}{own.labels[-1]}{own.close}{shown}"
        )
        return inputs

    def build(self, inputs: ListwiseInputs, say: Say, gradient_checkpointing: bool = False) -> ListwiseModel:
        """The model on the CPU in float32. Raises LoadingError where weights cannot be found, read or used."""
        from transformers import AutoModelForCausalLM

        from rankpo.models.listwise.model import ListwiseModel
        from rankpo.models.loading import LoadingError

        backbone = self._backbone(AutoModelForCausalLM)
        try:
            model = ListwiseModel(
                backbone,
                inputs,
                layout=self.layout,
                chunk_tokens=self.chunk_tokens,
                neftune_alpha=self.neftune_alpha,
            )
        except ValueError as error:
            raise LoadingError(f"{self.origin}: {error}") from error
        if gradient_checkpointing:
            backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if self.use_peft:
            model.backbone = self._adapted(backbone, "CAUSAL_LM")
        if self.compile:
            inner: Any = model.base.base_model
            inner.compile(dynamic=True)
        say(self.summary(model))
        return model


def read_listwise_settings(folder: Path) -> ListwiseSettings | None:
    """The settings of a folder that rankpo wrote, or None for a folder of plain weights."""
    path = folder / "rankpo.json"
    if not path.exists():
        return None
    record = json.loads(path.read_text())
    return ListwiseSettings.from_json(record["settings"]) if record["kind"] == "listwise" else None


def _prefer(
    saved: ListwiseSettings, given: ListwiseSettings, explicit: Collection[str], say: Say, folder: str
) -> ListwiseSettings:
    """The saved settings, with those keys of the given ones that the command line names."""
    changed = {}
    for item in fields(ListwiseSettings):
        old, new = getattr(saved, item.name), getattr(given, item.name)
        if old == new:
            continue
        key = "prompt" if item.name == "template" else item.name
        if key in explicit or any(name.startswith(f"{key}.") for name in explicit):
            changed[item.name] = new
            say(f"model.{key} is not the one with which {folder} was saved")
        else:
            say(f"{folder} was saved with another {key}: that is used, not the yaml's")
    return replace(saved, **changed)
