"""Settings of a reranker's inputs and head, saved with the weights."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rankpo.models.settings import Settings

HEADS = ("encoder", "decoder", "causal_lm")
AUTO = "auto"  # as a key of the config: the architecture decides
SMALLEST_QUERY = 8  # tokens that a query keeps beside the shortest document, whatever the lengths


@dataclass(frozen=True)
class Format:
    """A template of one text: the parts before and after it."""

    head: str
    tail: str


@dataclass(frozen=True, kw_only=True)
class RerankerSettings(Settings):
    """The keys of a reranker's yaml that its folder keeps.

    head: "encoder" (a classification head with one label), "decoder" (a linear score on the last token) or
    "causal_lm" (the language model's own logits of `yes_word` and `no_word` after the last token). readout: of
    causal_lm, "difference" z[yes] - z[no], or "yes", z[yes] alone.
    query_format, document_format: one `{}` each (or `{query}`, `{document}`), and `{instruction}` if wanted.
    separator: text between the two; None takes the tokenizer's own layout of a pair. suffix: text after the document;
    the score of decoder and causal_lm stands on its last token. add_eos: the end token behind the suffix.
    chat_template: both formats stand in a user's turn of the tokenizer's template, and the answer begins after it.
    max_length: tokens of a whole pair. The document is cut first, down to `min_document_tokens` beside its head; the
    query only then, or at `query_max_length`. activation: what `compute_score` applies unless told otherwise.
    long_document: where texts are scored (not in training), a document is cut ("truncate"), or read in overlapping
    slices of which the best counts ("max_slice").
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
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("max_length", "min_document_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1 token, got {getattr(self, name)}")
        if self.query_max_length is not None and self.query_max_length < SMALLEST_QUERY:
            raise ValueError(f"query_max_length must be >= {SMALLEST_QUERY} or null, got {self.query_max_length}")
        if self.head == "causal_lm" and self.add_eos:
            raise ValueError("add_eos=true puts the end before the answer that head=causal_lm reads; set it to false")
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
                        f"separator is null, so the tokenizer's own layout of a pair is used, which has no place for "
                        f"{name} ({value!r}); set separator to a text"
                    )

    @property
    def query(self) -> Format:
        return _parsed("query_format", self.query_format, "query", self.instruction)

    @property
    def document(self) -> Format:
        return _parsed("document_format", self.document_format, "document", self.instruction)


def _parsed(key: str, template: str, role: str, instruction: str) -> Format:
    """Raises ValueError unless the template holds exactly one place for its text, and nothing else in braces."""
    places = re.findall(r"\{[^{}]*\}", template)
    texts = [place for place in places if place in ("{}", f"{{{role}}}")]
    if len(texts) != 1 or any(place not in (*texts, "{instruction}") for place in places):
        raise ValueError(
            f"{key} must hold {{}} or {{{role}}} once, and {{instruction}} if wanted; nothing else in braces, "
            f"got {template!r}"
        )
    head, tail = template.split(texts[0])
    return Format(*(part.replace("{instruction}", instruction) for part in (head, tail)))
