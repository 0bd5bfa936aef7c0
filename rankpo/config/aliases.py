"""Old names of models, rewritten before Hydra reads the overrides; they work until the next release.

In earlier versions, a name such as `minilm_reranker` chose a checkpoint and a kind together. Now `model` chooses the
weights and `kind` the kind of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rankpo.config.choices import chosen as chosen_options
from rankpo.config.named_datasets import named
from rankpo.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Alias:
    """The model, the kind and the settings of an old name. settings: values that the old yaml set for keys of the kind."""

    model: str
    kind: str
    settings: Mapping[str, object] = field(default_factory=dict)

    @property
    def spelling(self) -> str:
        return f"model={self.model} kind={self.kind}"


QWEN_FORMATS = {"query_format": "query: {}", "separator": "\n", "document_format": "document: {}", "max_length": 1024}
YES_NO = {"head": "causal_lm", "suffix": "\nrelevant:", "yes_word": "y", "no_word": "n"}
ALIASES = {
    "embedding": Alias(model="base", kind="embedding"),
    "reranker": Alias(model="base", kind="reranker"),
    "causal_lm": Alias(model="base", kind="causal_lm"),
    "listwise_llm": Alias(model="base", kind="listwise"),
    "llama_embedding": Alias(
        model="llama", kind="embedding", settings={"query_max_length": 1280, "passage_max_length": 4096}
    ),
    "minilm_reranker": Alias(model="minilm", kind="reranker"),
    "qwen_reranker": Alias(model="qwen3_reranker", kind="reranker"),
    "decoder_reranker": Alias(
        model="qwen model.name_or_path=Qwen/Qwen2.5-1.5B", kind="reranker", settings={**QWEN_FORMATS, "suffix": "</s>"}
    ),
    "tiny_reranker": Alias(model="tiny_bert", kind="reranker"),
    "tiny_decoder_reranker": Alias(model="tiny_llama", kind="reranker"),
    "tiny_yes_no": Alias(model="tiny_llama", kind="reranker", settings=YES_NO),
    "tiny_listwise": Alias(model="tiny_llama_wide", kind="listwise"),
    "tiny_llama_lm": Alias(model="tiny_llama", kind="causal_lm"),
}


def modern(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Rewrites old names of models to the new spelling. Returns the overrides, and one line for each rewritten one.

    `named_datasets.named` rewrites datasets with user-defined names. A kind that the overrides choose is kept. Raises
    ConfigError for an old name among several values of a sweep, which could need several kinds.
    """
    chosen = {item.partition("=")[0] for item in overrides}
    made: list[str] = []
    notes = []
    for item in named(chosen_options(overrides)):
        key, _, value = item.partition("=")
        if key != "model" or not {*value.split(",")} & {*ALIASES}:
            made.append(item)
            continue
        if value not in ALIASES:
            names = [f"{name}: {ALIASES[name].spelling}" for name in value.split(",") if name in ALIASES]
            raise ConfigError(
                [f"{item}: old names of models cannot be swept over; the new spellings are {'; '.join(names)}"]
            )
        alias = ALIASES[value]
        made += _spelled(alias, chosen)
        notes.append(f"{item} is an old name, which the next release removes; write {alias.spelling}")
    return made, notes


def _spelled(alias: Alias, chosen: set[str]) -> list[str]:
    """The overrides of an alias. chosen: keys that the command line sets, which take precedence."""
    model, *more = alias.model.split()
    made = [f"model={model}", *(item for item in more if item.partition("=")[0] not in chosen)]
    if "kind" not in chosen:
        made.append(f"kind={alias.kind}")
    return made + [f"++model.by_kind.{alias.kind}.{name}={_quoted(value)}" for name, value in alias.settings.items()]


def _quoted(value: object) -> str:
    """A value in Hydra's grammar of overrides. Strings are quoted, because they can contain any character."""
    if not isinstance(value, str):
        return str(value)
    escaped = value.replace("'", "\\'")
    return f"'{escaped}'"
