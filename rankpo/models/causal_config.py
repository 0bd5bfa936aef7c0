"""The keys of `model=llama`, `model=pythia` and other causal language models, checked without loading anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankpo.models.build import ATTENTION, LoraSettings
from rankpo.models.causal_settings import CausalSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rankpo.data.completion_inputs import CompletionInputs
    from rankpo.models.causal_lm import CausalLanguageModel


@dataclass(frozen=True, kw_only=True)
class CausalModelConfig:
    """A causal language model: where its weights come from and how it reads prompts and completions.

    name_or_path / load_from, or else random, must say where weights come from. load_lora_from: a folder of adapters to
    go on training. share_prompts: a prompt is computed once for all its completions, where the layout is packed.
    Settings that a folder carries (rankpo.json) win over the yaml, and the command line over both.
    """

    kind = "causal_lm"
    logps = "none"  # scores already are log-probabilities

    name_or_path: str | None = None
    load_from: str | None = None
    revision: str | None = None
    random: Mapping[str, Any] | None = None
    max_length: int = 1024
    max_prompt_length: int = 512
    chat_template: str | None = None
    control_tokens: tuple[str, str] | None = None
    attn_implementation: str = "sdpa"
    layout: str = "auto"
    chunk_tokens: int | None = None
    share_prompts: bool = True
    compile: bool = False
    trust_remote_code: bool = False
    use_peft: bool = False
    load_lora_from: str | None = None
    peft: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.random is None and self.name_or_path is None and self.load_from is None:
            raise ValueError("name_or_path or load_from, or else random, must say where the weights come from")
        if self.attn_implementation not in ATTENTION:
            raise ValueError(
                f"attn_implementation must be one of {', '.join(ATTENTION)}, got {self.attn_implementation!r}"
            )
        if self.layout not in ("auto", "packed", "padded"):
            raise ValueError(f"layout must be one of auto, packed, padded, got {self.layout!r}")
        if self.chunk_tokens is not None and self.chunk_tokens < 1:
            raise ValueError(f"chunk_tokens must be >= 1 or null, got {self.chunk_tokens}")
        if self.load_lora_from is not None and not self.use_peft:
            raise ValueError("load_lora_from needs use_peft=true")
        _ = self.settings, self.lora

    @property
    def settings(self) -> CausalSettings:
        return CausalSettings(**{item.name: getattr(self, item.name) for item in fields(CausalSettings)})

    @property
    def lora(self) -> LoraSettings:
        return LoraSettings(**self.peft)

    @property
    def _is_random(self) -> bool:
        return self.random is not None and self.load_from is None

    def open_inputs(self, say: Callable[[str], None], explicit: Collection[str] = ()) -> CompletionInputs:
        """Tokenizer and settings, without any weight: data is read and checked with them first."""
        from rankpo.data.completion_inputs import CompletionInputs
        from rankpo.models import loading

        if self._is_random:
            return CompletionInputs(loading.byte_tokenizer(), self.settings)
        source = loading.resolve(self.name_or_path or "", self.load_from, self.revision)
        settings = self.settings
        saved = read_causal_settings(Path(source.path), self.kind) if self.load_from else None
        if saved is not None:
            settings = _prefer(saved, settings, explicit, say, source.name)
        return CompletionInputs(loading.load_tokenizer(source, self.trust_remote_code), settings)

    def build(
        self, inputs: CompletionInputs, say: Callable[[str], None], gradient_checkpointing: bool = False
    ) -> CausalLanguageModel:
        """The model on the CPU in float32. Raises LoadingError where weights cannot be found or read."""
        from rankpo.models.causal_lm import CausalLanguageModel

        backbone = self._load_backbone()
        embeddings: Any = backbone.get_input_embeddings()
        added = len(inputs.tokenizer) > embeddings.num_embeddings
        if added:  # control tokens; checkpoints often hold more rows than tokens, and those are kept
            backbone.resize_token_embeddings(len(inputs.tokenizer))
        model = CausalLanguageModel(
            backbone,
            inputs.tokenizer,
            inputs.settings,
            layout=self.layout,
            chunk_tokens=self.chunk_tokens,
            share_prompts=self.share_prompts,
        )
        if gradient_checkpointing:
            backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if self.use_peft:
            model.backbone = self._with_adapters(backbone, trains_embeddings=added)
        if self.compile:
            model.base.base_model.compile(dynamic=True)
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

    def _with_adapters(self, backbone: PreTrainedModel, trains_embeddings: bool) -> Any:
        from peft import LoraConfig, PeftModel, TaskType, get_peft_model

        from rankpo.models import loading

        if trains_embeddings:
            raise ValueError(
                "model.control_tokens adds rows to the embeddings, which adapters leave frozen; set use_peft=false"
            )
        if self.load_lora_from is not None:
            loading.check_adapters(self.load_lora_from)
            return PeftModel.from_pretrained(backbone, self.load_lora_from, is_trainable=True)
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


def read_causal_settings(folder: Path, kind: str = "causal_lm") -> CausalSettings | None:
    """The settings of a folder that rankpo wrote, or None. Raises ValueError for a folder of another kind of model."""
    path = folder / "rankpo.json"
    if not path.exists():
        return None
    record = json.loads(path.read_text())
    if record["kind"] != kind:
        raise ValueError(f"{folder} holds a model of kind {record['kind']}, not {kind}")
    return CausalSettings.from_json(record["settings"])


def _prefer(
    saved: CausalSettings, given: CausalSettings, explicit: Collection[str], say: Callable[[str], None], folder: str
) -> CausalSettings:
    """The saved settings, with those keys of the given ones that the command line (or the loss) asks for."""
    changed = {}
    for item in fields(CausalSettings):
        old, new = getattr(saved, item.name), getattr(given, item.name)
        if old == new:
            continue
        if item.name in explicit or (item.name == "control_tokens" and new is not None):
            changed[item.name] = new
            say(f"model.{item.name}={new!r} instead of {old!r}, with which {folder} was saved")
        else:
            say(f"{folder} was saved with {item.name}={old!r}: that is used, not the yaml's {new!r}")
    return replace(saved, **changed)
