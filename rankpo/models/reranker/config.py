"""RerankerKind: the configuration of models that score a query and a candidate as one sequence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rankpo.models.kind import ModelKind, Say
from rankpo.models.reranker.reading import read_folder
from rankpo.models.reranker.settings import AUTO, RerankerSettings
from rankpo.models.saved import RECORD, Stated
from rankpo.models.settings import Settings
from rankpo.models.st_folders import plain_lengths

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rankpo.models.reranker.inputs import RerankerInputs
    from rankpo.models.reranker.model import RerankerModel
    from rankpo.models.reranker.saving import RerankerFolder


@dataclass(frozen=True, kw_only=True)
class RerankerKind(RerankerSettings, ModelKind["RerankerSettings", "RerankerInputs", "RerankerModel"]):
    """A reranker: one score per pair of query and candidate.

    export_one_label: whether FINAL of a causal language model has one linear head instead of the logits of two answers.
    Settings in a folder's rankpo.json override the yaml, and the command line overrides both.
    """

    kind: ClassVar[str] = "reranker"
    gives: ClassVar[frozenset[str]] = frozenset({"pairs"})
    logps: ClassVar[str] = "sigmoid"  # The relevance of a candidate does not depend on the others.
    settings_class: ClassVar[type[Settings]] = RerankerSettings

    head: str = AUTO

    export_one_label: bool = False

    def __post_init__(self) -> None:
        ModelKind.__post_init__(self)
        if self.export_one_label and self.head != "causal_lm":
            raise ValueError(
                f"export_one_label=true needs head=causal_lm, whose two answers it converts to one head, got {self.head}"
            )

    def make_inputs(self, tokenizer: PreTrainedTokenizerBase, settings: RerankerSettings, say: Say) -> RerankerInputs:
        from rankpo.models.reranker.inputs import RerankerInputs

        ensure_pad(tokenizer, say)
        return RerankerInputs(tokenizer, settings)

    def decided(self, settings: RerankerSettings) -> RerankerSettings:
        """Resolves head=auto: `decoder` (a score on the last token) for decoders, `encoder` for encoders."""
        if settings.head != AUTO:
            return settings
        return replace(settings, head="decoder" if self.decodes() else "encoder")

    def load(self, inputs: RerankerInputs, say: Say) -> PreTrainedModel:
        from rankpo.models.reranker.families import CAUSAL_LM, OneLabelFamily

        if inputs.settings.head == "causal_lm":
            backbone = self.backbone(CAUSAL_LM)
        else:
            family = OneLabelFamily()
            backbone = self.backbone(family)
            if family.missing:
                say(f"initialised at random from the run's seed: {', '.join(sorted(family.missing))}")
        align_pad(inputs.tokenizer, backbone, say)
        return backbone

    def wrap(self, backbone: PreTrainedModel, inputs: RerankerInputs) -> RerankerModel:
        from rankpo.models.reranker.model import RerankerModel

        return RerankerModel(backbone, inputs, layout=self.layout, chunk_tokens=self.chunk_tokens)

    def adapt(self, model: RerankerModel) -> PeftModel:
        task = "CAUSAL_LM" if model.settings.head == "causal_lm" else "SEQ_CLS"
        return self.adapted(model.base, task, modules_to_save=list(model.head.modules) or None)

    def folder_format(self) -> RerankerFolder:
        from rankpo.models.reranker.saving import RerankerFolder

        return RerankerFolder(one_label=self.export_one_label)

    def stated(self, folder: Path) -> Stated | None:
        """Reads rankpo.json, the reranker.json of older versions, or the files of a CrossEncoder."""
        stated = read_folder(folder)
        if stated is not None or self.head == "causal_lm" or (folder / RECORD).exists():
            return stated
        lengths = plain_lengths(folder, {"max_length": self.max_length})
        return Stated(values=lengths, source="config.json") if lengths else None


def ensure_pad(tokenizer: PreTrainedTokenizerBase, say: Say) -> None:
    """Sets a pad token if there is none: an existing reserved token, or else the unknown token.

    rankpo counts lengths and could use the end token, but transformers finds the end of a text by the pad id.
    """
    if tokenizer.pad_token is not None:
        return
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    reserved = [name for name in special if any(word in name.lower() for word in ("pad", "reserved", "unused"))]
    chosen = next(iter(reserved), tokenizer.unk_token or tokenizer.eos_token)
    tokenizer.pad_token = chosen
    say(f"the tokenizer has no pad token, so {chosen!r} is used")


def align_pad(tokenizer: PreTrainedTokenizerBase, backbone: PreTrainedModel, say: Say) -> None:
    """Sets the model's pad id to the tokenizer's, since transformers finds the end of a text by the model's."""
    config = backbone.config.get_text_config()
    if config.pad_token_id != tokenizer.pad_token_id:
        say(f"config.pad_token_id={config.pad_token_id} is replaced by the tokenizer's {tokenizer.pad_token_id}")
        config.pad_token_id = backbone.config.pad_token_id = tokenizer.pad_token_id
