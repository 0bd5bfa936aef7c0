"""Every record format as one function from a record to an example's parts. interop.md sections 1.1 to 1.6."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Record = Mapping[str, Any]


class BadRecord(ValueError):
    """What is wrong with one record, without its place."""


@dataclass(frozen=True)
class Parsed:
    """An example before it has an id and a place."""

    query: str
    candidates: list[str]
    relevance: list[float]
    teacher: list[float] | None = None
    confidence: float | None = None


@dataclass(frozen=True)
class Options:
    """Field names by role, as the field map gives them, and the label range."""

    fields: Mapping[str, Any]
    min_label: float | None = None
    max_label: float | None = None
    scores_are: str = "relevance"

    def get(self, record: Record, role: str, default: str | None = None) -> Any:
        """The value of a role. Raises BadRecord naming the found keys and the key to set."""
        spec = self.fields.get(role) or default or role
        value = extract(record, spec)
        if value is None:
            hint = f"; set {role}=<one of them>" if role not in self.fields else ""
            raise BadRecord(f"no field {spec!r} (found: {', '.join(record) or 'nothing'}){hint}")
        return value

    def optional(self, record: Record, role: str, default: str | None = None) -> Any:
        return extract(record, self.fields.get(role) or default or role)

    def scaled(self, label: float) -> float:
        """(label - min_label)/(max_label - min_label), or the label itself without a range."""
        if self.min_label is None or self.max_label is None:
            return label
        if not self.min_label <= label <= self.max_label:
            raise BadRecord(f"label {label} is outside [{self.min_label}, {self.max_label}]")
        return (label - self.min_label) / (self.max_label - self.min_label)


def extract(record: Any, spec: Any) -> Any:
    """The value at a path: `a.b` descends, `a[]` and `a[].b` collect, `a_*` collects columns by number, a list of
    paths joins their texts, `=text` is a constant. None where it is not there."""
    if isinstance(spec, list | tuple):
        parts = [extract(record, item) for item in spec]
        return None if any(part is None for part in parts) else " ".join(str(part) for part in parts)
    if spec.startswith("="):
        return spec[1:]
    if isinstance(record, Mapping) and spec in record:
        return record[spec]
    if spec.endswith("_*"):
        stem = spec[:-1]
        names = [n for n in record if n.startswith(stem) and n[len(stem) :].isdigit()]
        return [record[name] for name in sorted(names, key=lambda name: int(name[len(stem) :]))] or None
    head, _, rest = spec.partition(".")
    value = record.get(head.removesuffix("[]")) if isinstance(record, Mapping) else None
    if head.endswith("[]"):
        if not isinstance(value, list):
            return None
        return [extract(item, rest) for item in value] if rest else value
    return extract(value, rest) if rest and value is not None else (value if not rest else None)


def text(value: Any, role: str) -> str:
    """A text that is not empty. Raises BadRecord."""
    if not isinstance(value, str):
        raise BadRecord(f"{role} must be a text, got {type(value).__name__}")
    if not value.strip():
        raise BadRecord(f"{role} is empty")
    return value.strip()


def texts(value: Any, role: str) -> list[str]:
    """A list of texts. A bare string is an error: it would be read letter by letter elsewhere."""
    if not isinstance(value, list | tuple):
        raise BadRecord(f"{role} must be a list of texts, got {type(value).__name__}")
    return [text(item, f"{role}[{index}]") for index, item in enumerate(value)]


def number(value: Any, role: str) -> float:
    """A finite number; booleans and texts are refused (CSV's digits are not)."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise BadRecord(f"{role} must be a number, got {value!r}") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRecord(f"{role} must be a finite number, got {value!r}")
    return float(value)


def numbers(value: Any, count: int, role: str, other: str) -> list[float]:
    if not isinstance(value, list | tuple) or len(value) != count:
        size = len(value) if isinstance(value, list | tuple) else type(value).__name__
        raise BadRecord(f"{role} must have one number for each of {other} ({count}), got {size}")
    return [number(item, f"{role}[{index}]") for index, item in enumerate(value)]


def contrastive(record: Record, options: Options) -> Parsed:
    """{"query", "positives": [..], "negatives"?: [..]}; the raw form keeps each text under `.text`."""
    query = _inner(options.get(record, "query"))
    positives = texts(_inner(options.get(record, "positives")), "positives")
    given = options.optional(record, "negatives")
    negatives = texts(_inner(given), "negatives") if given is not None else []
    if not positives:
        raise BadRecord("positives is empty")
    return Parsed(text(query, "query"), positives + negatives, [1.0] * len(positives) + [0.0] * len(negatives))


def _inner(value: Any) -> Any:
    return value["text"] if isinstance(value, Mapping) and "text" in value else value


def preferences(record: Record, options: Options) -> Parsed:
    """{"query", "passage1", "passage2", "preferred": "A" or "B", "confidence_score"?: 0..100}. A is passage1."""
    query = text(options.get(record, "query"), "query")
    first = text(options.get(record, "passage1"), "passage1")
    second = text(options.get(record, "passage2"), "passage2")
    preferred = options.get(record, "preferred")
    if preferred not in ("A", "B"):
        raise BadRecord(f"preferred is {preferred!r}; allowed: A, B")
    if first == second:
        raise BadRecord("passage1 and passage2 are equal")
    stated = options.optional(record, "confidence_score")
    confidence = None if stated is None else number(stated, "confidence_score") / 100
    if confidence is not None and not 0 <= confidence <= 1:
        raise BadRecord(f"confidence_score is {stated}; allowed: 0 to 100")
    chosen, rejected = (first, second) if preferred == "A" else (second, first)
    return Parsed(query, [chosen, rejected], [1.0, 0.0], confidence=confidence)


def pos_neg(record: Record, options: Options) -> Parsed:
    """{"query", "pos": [..], "neg"?: [..], "pos_scores"?, "neg_scores"?}: FlagEmbedding, RAG-Retrieval."""
    query = text(options.get(record, "query"), "query")
    positives = texts(options.get(record, "positives", "pos"), "pos")
    given = options.optional(record, "negatives", "neg")
    negatives = texts(given, "neg") if given is not None else []
    if not positives and not negatives:
        raise BadRecord("no candidate at all")
    relevance = [1.0] * len(positives) + [0.0] * len(negatives)
    teacher = None
    scores = [options.optional(record, "pos_scores"), options.optional(record, "neg_scores")]
    if scores[1] is not None and given is None:
        raise BadRecord("neg_scores without neg")
    if any(score is not None for score in scores):
        values = numbers(scores[0], len(positives), "pos_scores", "pos")
        values += numbers(scores[1], len(negatives), "neg_scores", "neg") if negatives else []
        if options.scores_are == "teacher":
            teacher = values
        else:
            relevance = [options.scaled(value) for value in values]
    return Parsed(query, positives + negatives, relevance, teacher)


def grouped(record: Record, options: Options) -> Parsed:
    """{"query", "hits": [{"content", "label"}, ..]}; flat records are gathered into this form first."""
    query = text(options.get(record, "query"), "query")
    hits = options.get(record, "hits")
    if not isinstance(hits, list) or not hits:
        raise BadRecord("hits must be a list that is not empty")
    content, label = options.fields.get("content", "content"), options.fields.get("label")
    candidates, labels = [], []
    for index, hit in enumerate(hits):
        candidates.append(text(extract(hit, content), f"hits[{index}].{content}"))
        name = label or next((key for key in ("label", "score") if key in hit), "label")
        labels.append(number(extract(hit, name), f"hits[{index}].{name}"))
    if options.scores_are == "teacher":
        return Parsed(query, candidates, labels, labels)
    return Parsed(query, candidates, [options.scaled(value) for value in labels])


def columns(record: Record, options: Options) -> Parsed:
    """Any record, by the field map: query with candidates and relevance, or with positives and negatives."""
    query = text(options.get(record, "query"), "query")
    if "candidates" in options.fields:
        candidates = texts(options.get(record, "candidates"), "candidates")
        values = numbers(options.get(record, "relevance"), len(candidates), "relevance", "candidates")
        return Parsed(query, candidates, [options.scaled(value) for value in values])
    positives = texts(_list(options.get(record, "positives")), "positives")
    given = options.optional(record, "negatives") if "negatives" in options.fields else None
    negatives = texts(_list(given), "negatives") if given is not None else []
    return Parsed(query, positives + negatives, [1.0] * len(positives) + [0.0] * len(negatives))


def _list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


FORMATS: dict[str, Callable[[Record, Options], Parsed]] = {
    "contrastive": contrastive,
    "preferences": preferences,
    "pos_neg": pos_neg,
    "grouped": grouped,
    "flat": grouped,
    "columns": columns,
}
# the keys that decide, first match wins; more than one match is an error
KEYS: dict[str, Sequence[str]] = {
    "preferences": ("query", "passage1", "passage2"),
    "contrastive": ("query", "positives"),
    "pos_neg": ("query", "pos"),
    "grouped": ("query", "hits"),
    "flat": ("query", "content"),
}


def detect(record: Record, fields: Mapping[str, Any]) -> str:
    """The format of a file by the keys of its first record. Raises BadRecord where none or several match."""
    if "query" in fields and ("candidates" in fields or "positives" in fields) and fields["query"] not in record:
        return "columns"
    matches = [name for name, keys in KEYS.items() if all(fields.get(key, key) in record for key in keys)]
    if len(matches) == 1:
        return matches[0]
    if "candidates" in fields or ("positives" in fields and not matches):
        return "columns"
    known = "; ".join(f"{name}: {', '.join(keys)}" for name, keys in KEYS.items())
    what = "no format has" if not matches else f"{' and '.join(matches)} both have"
    raise BadRecord(f"{what} these keys (found: {', '.join(record)}); set format=… or a field map. Known: {known}")
