"""The keys of `model=…` for rerankers, checked without loading anything, and the model they describe."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankpo.models.kind import Say, WeightsConfig, prefer
from rankpo.models.reranker.settings import AUTO, RerankerSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rankpo.models.reranker.inputs import RerankerInputs
    from rankpo.models.reranker.model import RerankerModel

SETTINGS_FILE = "reranker.json"


@dataclass(frozen=True, kw_only=True)
class RerankerModelConfig(WeightsConfig):
    """A model that reads query and candidate together: how it reads, what it answers.

    Settings that a folder carries (reranker.json) win over the yaml, and the command line over both.
    export_one_label: FINAL of a causal language model holds one linear head instead of the two answers.
    """

    kind = "reranker"
    gives = frozenset({"pairs"})
    logps = "sigmoid"  # each candidate is relevant or not by itself

    head: str = AUTO
    readout: str = "difference"
    query_format: str = "{}"
    document_format: str = "{}"
    instruction: str = ""
    separator: str | None = None
    suffix: str = ""
    add_eos: bool = False
    chat_template: bool = False
    max_length: int = 512
    query_max_length: int | None = None
    min_document_tokens: int = 16
    yes_word: str = "yes"
    no_word: str = "no"
    activation: str = "identity"
    long_document: str = "truncate"
    export_one_label: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.export_one_label and self.head != "causal_lm":
            raise ValueError(
                f"export_one_label=true turns two answers into one head: it needs head=causal_lm, got {self.head}"
            )
        _ = self.settings

    @property
    def settings(self) -> RerankerSettings:
        return RerankerSettings(**{item.name: getattr(self, item.name) for item in fields(RerankerSettings)})

    def open_inputs(self, say: Say, explicit: Collection[str] = ()) -> RerankerInputs:
        """Tokenizer and settings, without any weight: data is read and checked with them first.

        explicit: keys given on the command line, which win over those saved in a `load_from` folder.
        """
        from rankpo.models import loading
        from rankpo.models.reranker.inputs import RerankerInputs

        if self._is_random:
            return RerankerInputs(loading.byte_tokenizer(), self._decided(self.settings))
        source = self.source()
        settings = self.settings
        saved = read_settings(Path(source.path)) if self.load_from else None
        if saved is not None:
            settings = prefer(saved, settings, explicit, say, source.name)
        tokenizer = loading.load_tokenizer(source, self.trust_remote_code)
        ensure_pad(tokenizer, say)
        return RerankerInputs(tokenizer, self._decided(settings))

    def _decided(self, settings: RerankerSettings) -> RerankerSettings:
        """The settings with head=auto decided by the architecture of the weights."""
        return settings.for_architecture(self.decodes()) if settings.head == AUTO else settings

    def build(self, inputs: RerankerInputs, say: Say, gradient_checkpointing: bool = False) -> RerankerModel:
        """The model on the CPU in float32. Raises LoadingError where weights cannot be found, read or used."""
        from rankpo.models.loading import LoadingError
        from rankpo.models.reranker.model import RerankerModel

        backbone, new = self._load(inputs.settings.head)
        align_pad(inputs.tokenizer, backbone, say)
        try:
            model = RerankerModel(
                backbone,
                inputs,
                layout=self.layout,
                chunk_tokens=self.chunk_tokens,
                one_label=self.export_one_label,
            )
        except ValueError as error:
            raise LoadingError(f"{self.origin}: {error}") from error
        if new:
            say(f"new, drawn with the run's seed: {', '.join(sorted(new))}")
        if gradient_checkpointing:
            backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if self.use_peft:
            task = "CAUSAL_LM" if inputs.settings.head == "causal_lm" else "SEQ_CLS"
            model.backbone = self._adapted(backbone, task, modules_to_save=list(model.head.modules) or None)
        if self.compile:
            inner: Any = model.base.base_model
            inner.compile(dynamic=True)
        say(self.summary(model))
        return model

    def _load(self, head: str) -> tuple[PreTrainedModel, list[str]]:
        """The model with its head, and the names of the weights that no checkpoint brought."""
        from transformers import AutoModelForCausalLM

        family: Any = AutoModelForCausalLM if head == "causal_lm" else OneLabelFamily()
        return self._backbone(family), getattr(family, "missing", [])


class OneLabelFamily:
    """AutoModelForSequenceClassification, asked for one label where the checkpoint has no head of its own.

    missing: after loading, the names of weights that the checkpoint does not hold.
    """

    missing: list[str]

    def from_pretrained(self, path: str, **arguments: Any) -> PreTrainedModel:
        from transformers import AutoConfig, AutoModelForSequenceClassification
        from transformers.utils import logging

        shared = {name: arguments[name] for name in ("revision", "trust_remote_code", "token")}
        config = AutoConfig.from_pretrained(path, **shared)
        if not any(name.endswith("ForSequenceClassification") for name in config.architectures or ()):
            config.num_labels = 1
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # its table of new weights: `missing` says the same in a line
        try:
            model, found = AutoModelForSequenceClassification.from_pretrained(
                path, config=config, output_loading_info=True, **arguments
            )
        finally:
            logging.set_verbosity(verbosity)
        self.missing = list(found["missing_keys"])
        return model

    def from_config(self, config: Any, **arguments: Any) -> PreTrainedModel:
        from transformers import AutoModelForSequenceClassification

        config.num_labels = 1
        return AutoModelForSequenceClassification.from_config(config, **arguments)


def ensure_pad(tokenizer: PreTrainedTokenizerBase, say: Say) -> None:
    """A pad token for tokenizers without one: an existing reserved token, else the unknown one; never a new one.

    The end token would do for us, who count lengths, but transformers looks for the end of a text by the pad id.
    """
    if tokenizer.pad_token is not None:
        return
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    reserved = [name for name in special if any(word in name.lower() for word in ("pad", "reserved", "unused"))]
    chosen = next(iter(reserved), tokenizer.unk_token or tokenizer.eos_token)
    tokenizer.pad_token = chosen
    say(f"the tokenizer has no pad token; {chosen!r} is used")


def align_pad(tokenizer: PreTrainedTokenizerBase, backbone: PreTrainedModel, say: Say) -> None:
    """The tokenizer's pad id wins over the model's: transformers finds the end of a text by the latter."""
    config = backbone.config.get_text_config()
    if config.pad_token_id != tokenizer.pad_token_id:
        say(f"config.pad_token_id is {config.pad_token_id}, the tokenizer's {tokenizer.pad_token_id} is used")
        config.pad_token_id = backbone.config.pad_token_id = tokenizer.pad_token_id


def read_settings(folder: Path) -> RerankerSettings | None:
    """What a saved reranker's folder says, or None where it is another's."""
    path = folder / SETTINGS_FILE
    return RerankerSettings.from_json(json.loads(path.read_text())["settings"]) if path.exists() else None
