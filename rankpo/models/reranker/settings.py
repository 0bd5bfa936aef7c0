"""Settings of a reranker's inputs and of its head. The model's folder stores them with the weights."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rankpo.models.settings import Settings

HEADS = ("encoder", "decoder", "causal_lm")
AUTO = "auto"  # A value for configs only: the model's architecture determines the head.
SMALLEST_QUERY = 8  # A query keeps at least this many tokens after truncation, next to any document.


@dataclass(frozen=True)
class Format:
    """A parsed template. head: the fixed text before the query or document. tail: the fixed text after it."""

    head: str
    tail: str


@dataclass(frozen=True, kw_only=True)
class RerankerSettings(Settings):
    """The keys of a reranker's yaml file that are saved with the weights.

    head: "encoder" is a classification head with one label. "decoder" is a linear layer on the hidden state of the last
    token. "causal_lm" uses the language model's logits z of `yes_word` and `no_word` after the last token.
    readout: the score of a causal_lm: "difference" is z[yes] - z[no], and "yes" is z[yes].
    query_format, document_format: templates. Each contains one `{}` (or `{query}`, `{document}`) for the text, and
    optionally `{instruction}`.
    separator: the text between query and document. None uses the tokenizer's own format for a pair of texts.
    suffix: the text after the document. The heads decoder and causal_lm read the last token of the sequence.
    add_eos: appends the end token to the suffix.
    chat_template: puts both formatted texts into a user turn of the tokenizer's chat template, after which the answer
    begins.
    max_length: the maximum number of tokens of a pair. Truncation shortens the document first, but keeps
    `min_document_tokens` of it in addition to the head of its format. Only then does it shorten the query.
    query_max_length: the maximum number of tokens of the query and the head of its format; None sets no separate limit.
    activation: the function that `compute_score` applies to scores by default.
    long_document: how inference reads documents that are too long. "truncate" reads the beginning. "max_slice" scores
    overlapping slices of the document and takes the maximum. Training always truncates.
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
    """Splits a template at the place of its text and inserts the instruction.

    Raises ValueError if the template does not contain exactly one place for the text, or has unknown names in braces.
    """
    places = re.findall(r"\{[^{}]*\}", template)
    texts = [place for place in places if place in ("{}", f"{{{role}}}")]
    if len(texts) != 1 or any(place not in (*texts, "{instruction}") for place in places):
        raise ValueError(
            f"{key} must hold {{}} or {{{role}}} once, and {{instruction}} if wanted; nothing else in braces, "
            f"got {template!r}"
        )
    head, tail = template.split(texts[0])
    return Format(*(part.replace("{instruction}", instruction) for part in (head, tail)))
