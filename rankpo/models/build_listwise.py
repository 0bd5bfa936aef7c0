"""The keys of `model=…` for listwise rerankers, checked without loading anything, and the model they describe."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankpo.data.listwise_prompts import read_template
from rankpo.models.build import ATTENTION, LoraSettings
from rankpo.models.listwise_settings import ListwiseSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rankpo.data.listwise_inputs import ListwiseInputs
    from rankpo.models.listwise import ListwiseModel

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ListwiseModelConfig:
    """A language model that orders the passages of one prompt: where its weights come from and how it reads and answers.

    name_or_path / load_from, or else random, must say where weights come from. prompt: the name of a shipped template
    or a yaml file, ours or RankLLM's. Settings that a folder carries (rankpo.json) win over the yaml, and the command
    line over both. The other keys are those of `ListwiseSettings`.
    """

    kind = "listwise"
    logps = "candidates"

    name_or_path: str | None = None
    load_from: str | None = None
    revision: str | None = None
    random: Mapping[str, Any] | None = None
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
    attn_implementation: str = "sdpa"
    layout: str = "auto"
    chunk_tokens: int | None = None
    compile: bool = False
    trust_remote_code: bool = False
    use_peft: bool = False
    peft: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.random is None and self.name_or_path is None and self.load_from is None:
            raise ValueError("name_or_path or load_from, or else random, must say where the weights come from")
        for name, allowed in (("attn_implementation", ATTENTION), ("layout", ("auto", "packed", "padded"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.chunk_tokens is not None and self.chunk_tokens < 1:
            raise ValueError(f"chunk_tokens must be >= 1 or null, got {self.chunk_tokens}")
        if not isinstance(self.trust_remote_code, bool):
            raise ValueError(f"trust_remote_code must be true or false, got {self.trust_remote_code!r}")
        if not self.neftune_alpha >= 0:
            raise ValueError(f"neftune_alpha must be >= 0, got {self.neftune_alpha}")
        _ = self.settings, self.lora

    @property
    def settings(self) -> ListwiseSettings:
        own = {item.name: getattr(self, item.name) for item in fields(ListwiseSettings) if item.name != "template"}
        return ListwiseSettings(template=read_template(self.prompt).to_json(), **own)

    @property
    def lora(self) -> LoraSettings:
        return LoraSettings(**self.peft)

    @property
    def _is_random(self) -> bool:
        return self.random is not None and self.load_from is None

    def open_inputs(self, say: Say, explicit: Collection[str] = ()) -> ListwiseInputs:
        """Tokenizer and settings, without any weight; the identifiers are proved here.

        Raises LoadingError for identifiers that the tokenizer does not keep as single tokens.
        """
        from rankpo.data.listwise_inputs import ListwiseInputs
        from rankpo.models import loading

        settings = self.settings
        if self._is_random:
            tokenizer: Any = loading.byte_tokenizer()
        else:
            source = loading.resolve(self.name_or_path or "", self.load_from, self.revision)
            saved = read_listwise_settings(Path(source.path)) if self.load_from else None
            if saved is not None:
                settings = _prefer(saved, settings, explicit, say, source.name)
            tokenizer = loading.load_tokenizer(source, self.trust_remote_code)
        try:
            inputs = ListwiseInputs(tokenizer, settings)
        except ValueError as error:
            raise loading.LoadingError(f"{self.load_from or self.name_or_path or 'random weights'}: {error}") from error
        for note in inputs.layout.notes:
            say(note)
        own = inputs.layout.identifiers
        shown = "" if own.canonical else ", from separate pieces: free generation may tokenise an answer otherwise"
        say(
            f"identifiers {own.scheme} {own.open}{own.labels[0]}{own.close} to {own.open}{own.labels[-1]}{own.close}{shown}"
        )
        return inputs

    def build(self, inputs: ListwiseInputs, say: Say, gradient_checkpointing: bool = False) -> ListwiseModel:
        """The model on the CPU in float32. Raises LoadingError where weights cannot be found, read or used."""
        from rankpo.models.listwise import ListwiseModel
        from rankpo.models.loading import LoadingError

        backbone = self._load_backbone()
        try:
            model = ListwiseModel(
                backbone,
                inputs,
                layout=self.layout,
                chunk_tokens=self.chunk_tokens,
                neftune_alpha=self.neftune_alpha,
            )
        except ValueError as error:
            raise LoadingError(f"{self.load_from or self.name_or_path or 'random weights'}: {error}") from error
        if gradient_checkpointing:
            backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if self.use_peft:
            model.backbone = self._with_adapters(backbone)
        if self.compile:
            inner: Any = model.base.base_model
            inner.compile(dynamic=True)
        say(
            f"{self.load_from or self.name_or_path or 'random weights'}: "
            f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, "
            f"{sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6:.2f} M trained, "
            f"{'packed' if model.packed else 'padded'} {self.attn_implementation}"
        )
        return model

    def _load_backbone(self) -> PreTrainedModel:
        from transformers import AutoModelForCausalLM

        from rankpo.models import loading

        if self.random is not None and self.load_from is None:
            return loading.random_backbone(self.random, self.attn_implementation, AutoModelForCausalLM)
        source = loading.resolve(self.name_or_path or "", self.load_from, self.revision)
        return loading.load_backbone(
            source,
            attn_implementation=self.attn_implementation,
            trust_remote_code=self.trust_remote_code,
            family=AutoModelForCausalLM,
        )

    def _with_adapters(self, backbone: PreTrainedModel) -> Any:
        from peft import LoraConfig, TaskType, get_peft_model

        lora = self.lora
        return get_peft_model(
            backbone,
            LoraConfig(
                task_type=TaskType.CAUSAL_LM,
                r=lora.lora_r,
                lora_alpha=lora.lora_alpha,
                lora_dropout=lora.lora_dropout,
                target_modules=lora.target_modules,
            ),
        )


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
