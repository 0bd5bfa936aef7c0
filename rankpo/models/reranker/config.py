"""The kind `reranker`: a model that reads query and candidate together, as the keys of its yaml describe it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rankpo.models.kind import ModelKind, Say
from rankpo.models.reranker.reading import read_folder
from rankpo.models.reranker.settings import AUTO, RerankerSettings
from rankpo.models.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rankpo.models.reranker.inputs import RerankerInputs
    from rankpo.models.reranker.model import RerankerModel
    from rankpo.models.reranker.saving import RerankerFolder
    from rankpo.models.saved import Stated


@dataclass(frozen=True, kw_only=True)
class RerankerKind(RerankerSettings, ModelKind):
    """A reranker: one score per pair of query and candidate.

    export_one_label: FINAL of a causal language model holds one linear head instead of the two answers. Settings that
    a folder states (rankpo.json) win over the yaml, and the command line over both.
    """

    kind: ClassVar[str] = "reranker"
    gives: ClassVar[frozenset[str]] = frozenset({"pairs"})
    logps: ClassVar[str] = "sigmoid"  # each candidate is relevant or not by itself
    settings_class: ClassVar[type[Settings]] = RerankerSettings

    head: str = AUTO

    export_one_label: bool = False

    def __post_init__(self) -> None:
        ModelKind.__post_init__(self)
        if self.export_one_label and self.head != "causal_lm":
            raise ValueError(
                f"export_one_label=true turns two answers into one head: it needs head=causal_lm, got {self.head}"
            )

    def make_inputs(self, tokenizer: PreTrainedTokenizerBase, settings: RerankerSettings, say: Say) -> RerankerInputs:
        from rankpo.models.reranker.inputs import RerankerInputs

        ensure_pad(tokenizer, say)
        return RerankerInputs(tokenizer, settings)

    def decided(self, settings: RerankerSettings) -> RerankerSettings:
        """With head=auto decided: the last token of a decoder carries the score, and an encoder has a head of its own."""
        if settings.head != AUTO:
            return settings
        return replace(settings, head="decoder" if self.decodes() else "encoder")

    def load(self, inputs: RerankerInputs, say: Say) -> PreTrainedModel:
        from transformers import AutoModelForCausalLM

        if inputs.settings.head == "causal_lm":
            backbone = self.backbone(AutoModelForCausalLM)
        else:
            family = OneLabelFamily()
            backbone = self.backbone(family)
            if family.missing:
                say(f"new, drawn with the run's seed: {', '.join(sorted(family.missing))}")
        align_pad(inputs.tokenizer, backbone, say)
        return backbone

    def wrap(self, backbone: PreTrainedModel, inputs: RerankerInputs) -> RerankerModel:
        from rankpo.models.reranker.model import RerankerModel

        return RerankerModel(backbone, inputs, layout=self.layout, chunk_tokens=self.chunk_tokens)

    def adapt(self, model: RerankerModel) -> object:
        task = "CAUSAL_LM" if model.settings.head == "causal_lm" else "SEQ_CLS"
        return self.adapted(model.base, task, modules_to_save=list(model.head.modules) or None)

    def folder_format(self) -> RerankerFolder:
        from rankpo.models.reranker.saving import RerankerFolder

        return RerankerFolder(one_label=self.export_one_label)

    def stated(self, folder: Path) -> Stated | None:
        """From rankpo.json, reranker.json of older versions, or the files of a CrossEncoder."""
        return read_folder(folder)


class OneLabelFamily:
    """AutoModelForSequenceClassification, asked for one label where the checkpoint has no head of its own.

    missing: after loading, the names of weights that the checkpoint does not hold.
    """

    def __init__(self) -> None:
        self.missing: list[str] = []

    def from_pretrained(self, path: str, **arguments: object) -> tuple[PreTrainedModel, Any]:
        """The model and transformers' report on loading."""
        from transformers import AutoConfig, AutoModelForSequenceClassification

        shared = {name: arguments[name] for name in ("trust_remote_code", "token")}
        config = AutoConfig.from_pretrained(path, **shared)
        if not any(name.endswith("ForSequenceClassification") for name in config.architectures or ()):
            config.num_labels = 1
        model, found = AutoModelForSequenceClassification.from_pretrained(path, config=config, **arguments)
        self.missing = list(found["missing_keys"])
        return model, found

    def from_config(self, config: Any, **arguments: object) -> PreTrainedModel:
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
