"""The keys of `model=llama`, `model=pythia` and other causal language models, checked without loading anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankpo.data.text.rendering import template_text
from rankpo.models.causal_lm.settings import CausalSettings
from rankpo.models.kind import WeightsConfig, prefer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rankpo.models.causal_lm.inputs import CompletionInputs
    from rankpo.models.causal_lm.model import CausalLanguageModel


@dataclass(frozen=True, kw_only=True)
class CausalModelConfig(WeightsConfig):
    """A causal language model: how it reads prompts and completions.

    chat_template: jinja, or a file of it. load_lora_from: a folder of adapters to go on training. share_prompts: a prompt is computed once for all its
    completions, where the layout is packed.
    Settings that a folder carries (rankpo.json) win over the yaml, and the command line over both.
    """

    kind = "causal_lm"
    gives = frozenset({"token_logps", "text"})
    logps = "none"  # scores already are log-probabilities

    max_length: int = 1024
    max_prompt_length: int = 512
    chat_template: str | None = None
    control_tokens: tuple[str, str] | None = None
    share_prompts: bool = True
    load_lora_from: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.load_lora_from is not None and not self.use_peft:
            raise ValueError("load_lora_from needs use_peft=true")
        object.__setattr__(self, "chat_template", template_text(self.chat_template))
        _ = self.settings

    @property
    def settings(self) -> CausalSettings:
        return CausalSettings(**{item.name: getattr(self, item.name) for item in fields(CausalSettings)})

    def open_inputs(self, say: Callable[[str], None], explicit: Collection[str] = ()) -> CompletionInputs:
        """Tokenizer and settings, without any weight: data is read and checked with them first."""
        from rankpo.models import loading
        from rankpo.models.causal_lm.inputs import CompletionInputs

        self._require_decoder()
        if self._is_random:
            return CompletionInputs(loading.byte_tokenizer(), self.settings)
        source = self.source()
        settings = self.settings
        saved = read_causal_settings(Path(source.path), self.kind) if self.load_from else None
        if saved is not None:
            # the loss asks for control tokens, not only the command line
            asked = {*explicit, *(["control_tokens"] if settings.control_tokens is not None else [])}
            settings = prefer(saved, settings, asked, say, source.name)
        tokenizer = loading.load_tokenizer(source, self.trust_remote_code)
        try:
            inputs = CompletionInputs(tokenizer, settings)
        except ValueError as error:
            raise loading.LoadingError(f"{source.name}: {error}") from error
        for note in inputs.chat.notes:
            say(f"{source.name}: {note}")
        return inputs

    def build(
        self, inputs: CompletionInputs, say: Callable[[str], None], gradient_checkpointing: bool = False
    ) -> CausalLanguageModel:
        """The model on the CPU in float32. Raises LoadingError where weights cannot be found or read."""
        from rankpo.models.causal_lm.model import CausalLanguageModel

        backbone = self._decoder()
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
        say(self.summary(model))
        return model

    def _decoder(self) -> PreTrainedModel:
        from transformers import AutoModelForCausalLM

        return self._backbone(AutoModelForCausalLM)

    def _with_adapters(self, backbone: PreTrainedModel, trains_embeddings: bool) -> Any:
        from peft import PeftModel

        from rankpo.models import loading

        if trains_embeddings:
            raise ValueError(
                "model.control_tokens adds rows to the embeddings, which adapters leave frozen; set use_peft=false"
            )
        if self.load_lora_from is not None:
            loading.check_adapters(self.load_lora_from)
            return PeftModel.from_pretrained(backbone, self.load_lora_from, is_trainable=True)
        return self._adapted(backbone, "CAUSAL_LM")


def read_causal_settings(folder: Path, kind: str = "causal_lm") -> CausalSettings | None:
    """The settings of a folder that rankpo wrote, or None. Raises ValueError for a folder of another kind of model."""
    path = folder / "rankpo.json"
    if not path.exists():
        return None
    record = json.loads(path.read_text())
    if record["kind"] != kind:
        raise ValueError(f"{folder} holds a model of kind {record['kind']}, not {kind}")
    return CausalSettings.from_json(record["settings"])
