"""Settings of a listwise reranker's inputs and decoding, saved with the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from rankpo.data.text.prompt_templates import PromptTemplate
from rankpo.models.settings import Settings

DECODE = ("first_token", "generate", "constrained")


@dataclass(frozen=True, kw_only=True)
class ListwiseKeys(Settings):
    """The keys that the yaml and a saved folder have in common.

    window: passages of one prompt. stride: the number of positions by which the window moves up. passes: over the whole
    list. top_k: the number of reranked candidates; the others keep their order below them.

    max_length: tokens of a prompt with its answer. max_passage_tokens: of one passage. If the passages do not fit, the
    longest are cut evenly down to min_passage_tokens, and then the query to max_query_tokens.
    escape_identifiers: replaces the brackets of identifiers in passages by round ones. chat_template: jinja instead of
    the tokenizer's template. decode: "first_token" uses the logits of all identifiers at one position, "generate"
    generates and parses an answer, and "constrained" generates each identifier exactly once. reasoning_tokens: the
    maximum tokens before the answer of `generate`.
    """

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

    def __post_init__(self) -> None:
        if self.window < 2:
            raise ValueError(f"window must be >= 2 passages, got {self.window}")
        if not 1 <= self.stride <= self.window:
            raise ValueError(f"stride must be in 1 to window={self.window}, got {self.stride}")
        for name in (
            "passes",
            "top_k",
            "max_length",
            "max_passage_tokens",
            "min_passage_tokens",
            "max_query_tokens",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.min_passage_tokens > self.max_passage_tokens:
            raise ValueError(
                f"min_passage_tokens must be <= max_passage_tokens={self.max_passage_tokens}, "
                f"got {self.min_passage_tokens}"
            )
        if self.decode not in DECODE:
            raise ValueError(f"decode must be one of {', '.join(DECODE)}, got {self.decode!r}")
        if self.reasoning_tokens < 0 or (self.reasoning_tokens and self.decode != "generate"):
            raise ValueError(f"reasoning_tokens must be 0, or > 0 with decode=generate, got {self.reasoning_tokens}")


@dataclass(frozen=True, kw_only=True)
class ListwiseSettings(ListwiseKeys):
    """The settings of a listwise reranker. template: the prompt, as `PromptTemplate.to_json` gives it."""

    yaml_keys: ClassVar[Mapping[str, str]] = {"template": "prompt"}

    template: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.prompt

    @property
    def prompt(self) -> PromptTemplate:
        return PromptTemplate.from_mapping(self.template)
