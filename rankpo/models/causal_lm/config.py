"""The keys of `model=llama`, `model=pythia` and other causal language models, checked without loading anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankpo.data.text.rendering import template_text
from rankpo.errors import ConfigError
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
        """The model on the CPU in float32. Raises LoadingError where weights cannot be found or read, ConfigError for a
        length beyond its positions.
        """
        from rankpo.models.causal_lm.model import CausalLanguageModel
        from rankpo.models.engine.positions import check_positions

        backbone = self._decoder()
        embeddings: Any = backbone.get_input_embeddings()
        rows = int(embeddings.num_embeddings)
        if len(inputs.tokenizer) > rows:  # control tokens; checkpoints often hold more rows than tokens, which are kept
            backbone.resize_token_embeddings(len(inputs.tokenizer))
        model = CausalLanguageModel(
            backbone,
            inputs.tokenizer,
            inputs.settings,
            layout=self.layout,
            chunk_tokens=self.chunk_tokens,
            share_prompts=self.share_prompts,
        )
        check_positions(inputs.settings.max_length, backbone, model.position_offset)
        if gradient_checkpointing:
            backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if self.use_peft:
            self._refuse_new_rows(inputs, len(inputs.tokenizer) - rows)
            model.backbone = self._with_adapters(backbone)
        if self.compile:
            model.base.base_model.compile(dynamic=True)
        say(self.summary(model))
        return model

    def _decoder(self) -> PreTrainedModel:
        from transformers import AutoModelForCausalLM

        return self._backbone(AutoModelForCausalLM)

    def _refuse_new_rows(self, inputs: CompletionInputs, count: int) -> None:
        """Raises ConfigError for adapters on a model whose tokenizer has tokens without a row of the embeddings."""
        if count <= 0:
            return
        if self.control_tokens is not None:
            why = "model.control_tokens adds rows to the embeddings"
        else:
            tokens = inputs.tokenizer.convert_ids_to_tokens(
                list(range(len(inputs.tokenizer) - count, len(inputs.tokenizer)))
            )
            why = (
                f"the tokenizer of {self.origin} has {count} tokens more than the model has embeddings "
                f"({', '.join(tokens[:5])}{', …' if count > 5 else ''}), which adds rows to the embeddings"
            )
        raise ConfigError([f"{why}, and adapters leave embeddings frozen; set model.use_peft=false"])

    def _with_adapters(self, backbone: PreTrainedModel) -> Any:
        from peft import PeftModel

        from rankpo.models import loading

        if self.load_lora_from is not None:
            loading.check_adapters(self.load_lora_from)
            self._refuse_merged()
            return PeftModel.from_pretrained(backbone, self.load_lora_from, is_trainable=True)
        return self._adapted(backbone, "CAUSAL_LM")

    def _refuse_merged(self) -> None:
        """Raises ConfigError for adapters that the weights already have inside: FINAL with its own adapter/ folder."""
        if self._is_random:
            return
        given, kept = Path(self.load_lora_from or ""), Path(self.source().path) / "adapter"
        files = [folder / "adapter_model.safetensors" for folder in (given, kept)]
        if all(file.exists() for file in files) and files[0].read_bytes() == files[1].read_bytes():
            raise ConfigError(
                [
                    f"model.load_lora_from={self.load_lora_from} is merged into {self.origin} already and would act "
                    "twice; leave it out, or load the base model that the adapters were trained on"
                ]
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
