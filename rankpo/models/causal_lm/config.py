"""CausalKind: the configuration of causal language models."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

from rankpo.data.text.rendering import template_text
from rankpo.errors import ConfigError
from rankpo.models.causal_lm.settings import CausalSettings
from rankpo.models.kind import ModelKind, Say
from rankpo.models.settings import Settings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rankpo.models.causal_lm.completions import CompletionModel
    from rankpo.models.causal_lm.inputs import CompletionInputs
    from rankpo.models.causal_lm.model import CausalLanguageModel
    from rankpo.models.saving import FolderFormat


CompletionT_co = TypeVar("CompletionT_co", bound="CompletionModel", covariant=True)


@dataclass(frozen=True, kw_only=True)
class CompletionKind(CausalSettings, ModelKind["CausalSettings", "CompletionInputs", CompletionT_co]):
    """The keys of decoders that read a prompt and a completion: the kinds causal_lm and reward_model.

    chat_template: jinja, or a file of it. load_lora_from: a folder of adapters to go on training. share_prompts: a
    prompt is computed once for all its completions, where the layout is packed. Settings that a folder states
    (rankpo.json) win over the yaml, and the command line over both.
    """

    decoders_only: ClassVar[bool] = True
    settings_class: ClassVar[type[Settings]] = CausalSettings

    share_prompts: bool = True
    load_lora_from: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "chat_template", template_text(self.chat_template))
        ModelKind.__post_init__(self)
        if self.load_lora_from is not None and not self.use_peft:
            raise ValueError("load_lora_from needs use_peft=true")

    @property
    def continues_adapters(self) -> bool:
        return self.load_lora_from is not None

    def make_inputs(self, tokenizer: PreTrainedTokenizerBase, settings: CausalSettings, say: Say) -> CompletionInputs:
        from rankpo.models.causal_lm.inputs import CompletionInputs

        inputs = CompletionInputs(tokenizer, settings)
        for note in inputs.chat.notes:
            say(f"{self.origin}: {note}")
        return inputs

    def decided(self, settings: CausalSettings) -> CausalSettings:
        self.require_decoder()
        return settings

    def load(self, inputs: CompletionInputs, say: Say) -> PreTrainedModel:
        from rankpo.models.families import CAUSAL_LM

        backbone = self.backbone(CAUSAL_LM)
        count = inputs.missing_embeddings(backbone)
        if count > 0:  # control tokens; checkpoints often hold more rows than tokens, which are kept
            if self.use_peft:
                self._refuse_new_rows(inputs, count)
            backbone.resize_token_embeddings(len(inputs.tokenizer))
        return backbone

    def _refuse_new_rows(self, inputs: CompletionInputs, count: int) -> None:
        """Raises ConfigError for adapters on a model whose tokenizer has tokens without a row of the embeddings."""
        size = len(inputs.tokenizer)
        tokens = inputs.tokenizer.convert_ids_to_tokens(list(range(size - count, size)))
        why = (
            f"the tokenizer of {self.origin} has {count} tokens more than the model has embeddings "
            f"({', '.join(tokens[:5])}{', …' if count > 5 else ''}), which adds rows to the embeddings"
        )
        if self.control_tokens is not None:
            why = "model.control_tokens adds rows to the embeddings"
        raise ConfigError([f"{why}, and adapters leave embeddings frozen; set model.use_peft=false"])

    def adapt(self, model: CompletionModel) -> PeftModel:
        if self.load_lora_from is None:
            return self.adapted(model.base, "CAUSAL_LM")
        from rankpo.models.adapting import open_adapters

        adapted = open_adapters(model.base, self.load_lora_from)
        self._refuse_merged()
        return adapted

    def _refuse_merged(self) -> None:
        """Raises ConfigError for adapters that are already merged into the weights: FINAL with its adapter/ folder."""
        if self.is_random:
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

    def asked(self, explicit: Collection[str]) -> Collection[str]:
        """Adds control_tokens, which the loss can set as well as the command line."""
        return {*explicit, *(["control_tokens"] if self.control_tokens is not None else [])}


@dataclass(frozen=True, kw_only=True)
class CausalKind(CompletionKind["CausalLanguageModel"]):
    """A causal language model: its scores are log-probabilities of completions."""

    kind: ClassVar[str] = "causal_lm"
    gives: ClassVar[frozenset[str]] = frozenset({"token_logps", "text"})
    logps: ClassVar[str] = "none"  # scores are log-probabilities

    def wrap(self, backbone: PreTrainedModel, inputs: CompletionInputs) -> CausalLanguageModel:
        from rankpo.models.causal_lm.model import CausalLanguageModel

        model = CausalLanguageModel(
            backbone, inputs, layout=self.layout, chunk_tokens=self.chunk_tokens, share_prompts=self.share_prompts
        )
        model.check_positions()
        return model

    def finish(self, model: CausalLanguageModel, needs: frozenset[str], say: Say) -> None:
        """With "value_head" in needs, a critic: that of the `load_from` folder if it holds one, else a new one."""
        if "value_head" in needs:
            from rankpo.models.causal_lm.value_head import VALUE_HEAD_FILE, attach_value_head

            attach_value_head(model, None if self.load_from is None else Path(self.load_from) / VALUE_HEAD_FILE)

    def folder_format(self) -> FolderFormat[CausalLanguageModel]:
        from rankpo.models.causal_lm.saving import CausalFolder

        return CausalFolder()
