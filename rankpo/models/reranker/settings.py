"""Settings of a reranker's inputs and of its head. The model's folder stores them with the weights."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rankpo.models.settings import Settings

HEADS = ("encoder", "decoder", "causal_lm")
TRUNCATIONS = ("document_first", "longest_first")
AUTO = "auto"  # Value of a key that is resolved by the architecture.
SMALLEST_QUERY = 8  # Minimum tokens of a query next to the shortest document.


@dataclass(frozen=True)
class Format:
    """A parsed template. head: the fixed text before the query or document. tail: the fixed text after it."""

    head: str
    tail: str


@dataclass(frozen=True, kw_only=True)
class RerankerSettings(Settings):
    """The keys of a reranker's yaml that its folder stores.

    head: "encoder" (a classification head with one label), "decoder" (a linear score on the last token) or
    "causal_lm" (the language model's own logits of `yes_word` and `no_word` after the last token). readout: for
    causal_lm, "difference" is z[yes] - z[no], and "yes" is z[yes].
    query_format, document_format: templates with one `{}` each (or `{query}`, `{document}`) and an optional
    `{instruction}`. separator: text between query and document; None uses the tokenizer's own layout of a pair. suffix:
    text after the document; decoder and causal_lm compute the score on its last token. add_eos: adds the end token
    after the suffix. chat_template: whether both formats are inside a user's turn of the tokenizer's template, followed
    by the start of the answer.
    max_length: tokens of a whole pair; `query_max_length` also limits the query. truncation: "document_first" cuts the
    document down to `min_document_tokens` after its head, and then the query; "longest_first" cuts the longer of both
    until they are equally long, and then both, as tokenizers of transformers and CrossEncoder do. activation: the default activation of `compute_score`.
    long_document: the treatment of long documents outside of training: "truncate" cuts them, and "max_slice" scores
    overlapping slices and returns the best score.
    """

    head: str = "encoder"
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
    truncation: str = "document_first"
    min_document_tokens: int = 16
    yes_word: str = "yes"
    no_word: str = "no"
    activation: str = "identity"
    long_document: str = "truncate"

    def __post_init__(self) -> None:
        for name, allowed in (
            ("head", (AUTO, *HEADS)),
            ("readout", ("difference", "yes")),
            ("activation", ("identity", "sigmoid")),
            ("long_document", ("truncate", "max_slice")),
            ("truncation", TRUNCATIONS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("max_length", "min_document_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1 token, got {getattr(self, name)}")
        if self.query_max_length is not None and self.query_max_length < SMALLEST_QUERY:
            raise ValueError(f"query_max_length must be >= {SMALLEST_QUERY} or null, got {self.query_max_length}")
        if self.head == "causal_lm" and self.add_eos:
            raise ValueError("add_eos=true puts the end token before the answer of head=causal_lm; set add_eos=false")
        if self.head == "encoder" and self.chat_template:
            raise ValueError("chat_template=true needs head=decoder or causal_lm, got encoder")
        query, document = self.query, self.document
        if self.separator is None and not self.chat_template:
            given: dict[str, object] = {
                "the tail of query_format": query.tail,
                "the tail of document_format": document.tail,
                "suffix": self.suffix,
                "add_eos": self.add_eos,
            }
            for name, value in given.items():
                if value:
                    raise ValueError(
                        f"separator=null uses the tokenizer's own layout of a pair, which has no place for "
                        f"{name} ({value!r}); set separator to a text"
                    )

    @property
    def query(self) -> Format:
        return _parsed("query_format", self.query_format, "query", self.instruction)

    @property
    def document(self) -> Format:
        return _parsed("document_format", self.document_format, "document", self.instruction)


def _parsed(key: str, template: str, role: str, instruction: str) -> Format:
    """Parses a template. Raises ValueError unless it has exactly one place for its text and no other braces."""
    places = re.findall(r"\{[^{}]*\}", template)
    texts = [place for place in places if place in ("{}", f"{{{role}}}")]
    if len(texts) != 1 or any(place not in (*texts, "{instruction}") for place in places):
        raise ValueError(
            f"{key} must contain {{}} or {{{role}}} once, optionally {{instruction}}, and no other braces, "
            f"got {template!r}"
        )
    head, tail = template.split(texts[0])
    return Format(*(part.replace("{instruction}", instruction) for part in (head, tail)))
