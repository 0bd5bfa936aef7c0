"""Every record format as one function from a record to an example's parts. interop.md sections 1.1 to 1.6."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
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


Spec = str | Sequence[str] | None


@dataclass(kw_only=True)
class FieldMap:
    """Where a record keeps what: a path of `extract` for each role, None for the format's own name."""

    query: Spec = None
    positives: Spec = None
    negatives: Spec = None
    candidates: Spec = None
    relevance: Spec = None
    passage1: Spec = None
    passage2: Spec = None
    preferred: Spec = None
    confidence_score: Spec = None
    pos_scores: Spec = None
    neg_scores: Spec = None
    hits: Spec = None
    content: Spec = None
    label: Spec = None
    id: Spec = None

    def mapped(self) -> dict[str, str | Sequence[str]]:
        """The roles that are set."""
        return {name: value for name in ROLES if (value := getattr(self, name)) is not None}


ROLES = tuple(item.name for item in fields(FieldMap))


@dataclass(frozen=True)
class Options:
    """Field names by role, as the field map gives them; the label range; the dataset's key, for remedies."""

    fields: Mapping[str, Any]
    min_label: float | None = None
    max_label: float | None = None
    scores_are: str = "relevance"
    key: str = "datasets.NAME"

    def get(self, record: Record, role: str, default: str | None = None) -> Any:
        """The value of a role. Raises BadRecord naming the found keys and the key to set."""
        spec = self.fields.get(role) or default or role
        value = extract(record, spec)
        if value is None:
            hint = f"{self.key}.{role}={spec} names it" if role in self.fields else self._remedy(record, role)
            raise BadRecord(f"no field {spec!r} (found: {', '.join(map(str, record)) or 'nothing'}); {hint}")
        return value

    def _remedy(self, record: Record, role: str) -> str:
        free = [str(name) for name in record if name not in ROLES]  # other roles' own names are no answer
        near = get_close_matches(role, free, n=1, cutoff=0.5)
        return f"set {self.key}.{role}={near[0] if near else '<one of these>'}"

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
    if spec.endswith("_*") and isinstance(record, Mapping):
        stem = spec[:-1]
        names = [n for n in record if n.startswith(stem) and n[len(stem) :].isdecimal()]
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
    """{"query", "positives": [..], "negatives"?: [..]}."""
    query = text(options.get(record, "query"), "query")
    positives = texts(options.get(record, "positives"), "positives")
    given = options.optional(record, "negatives")
    return _two_lists(query, positives, [] if given is None else texts(given, "negatives"))


def contrastive_raw(record: Record, options: Options) -> Parsed:
    """{"query": {"text"}, "positives": {"text": [..], "index"?: [..]}, "negatives"?: {"text": [..]}}."""
    query = text(inner(options.get(record, "query"), "query"), "query.text")
    given = options.get(record, "positives")
    positives = texts(inner(given, "positives"), "positives.text")
    if "index" in given:
        numbers(given["index"], len(positives), "positives.index", "positives.text")
    negatives = options.optional(record, "negatives")
    return _two_lists(
        query, positives, [] if negatives is None else texts(inner(negatives, "negatives"), "negatives.text")
    )


def inner(value: Any, role: str) -> Any:
    """The `text` of an object of the raw form. Raises BadRecord."""
    if not isinstance(value, Mapping) or "text" not in value:
        found = ", ".join(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
        raise BadRecord(f"{role} must be an object with text, as its file's first record has it, got {found}")
    return value["text"]


def _two_lists(query: str, positives: list[str], negatives: list[str]) -> Parsed:
    if not positives:
        raise BadRecord("positives is empty")
    return Parsed(query, positives + negatives, [1.0] * len(positives) + [0.0] * len(negatives))


def preferences(record: Record, options: Options) -> Parsed:
    """{"query", "passage1", "passage2", "preferred": "A" or "B", "confidence_score"?: 0..100}. A is passage1."""
    query = text(options.get(record, "query"), "query")
    first = text(options.get(record, "passage1"), "passage1")
    second = text(options.get(record, "passage2"), "passage2")
    preferred = options.get(record, "preferred")
    if preferred not in ("A", "B"):
        raise BadRecord(f"preferred is {preferred!r}; allowed: A, B")
    if normal(first) == normal(second):
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
    """{"query", "hits": [{"content", "label" or "score"}, ..]}."""
    query = text(options.get(record, "query"), "query")
    hits = options.get(record, "hits")
    if not isinstance(hits, list) or not hits:
        raise BadRecord("hits must be a list that is not empty")
    return labelled(query, [labelled_text(hit, options, f"hits[{index}].") for index, hit in enumerate(hits)], options)


def labelled_text(record: Any, options: Options, place: str = "") -> tuple[str, float]:
    """(text, label) of {"content", "label" or "score"}. place: put in front of the names in messages."""
    if not isinstance(record, Mapping):
        raise BadRecord(f"{place.rstrip('.')} must be an object, got {type(record).__name__}")
    content = options.fields.get("content", "content")
    label = options.fields.get("label") or next((key for key in ("label", "score") if key in record), "label")
    value = extract(record, label)
    if value is None:
        raise BadRecord(
            f"no field {place + str(label)!r} (found: {', '.join(map(str, record))}); a label is never assumed"
        )
    return text(extract(record, content), f"{place}{content}"), number(value, f"{place}{label}")


def labelled(query: str, pairs: Sequence[tuple[str, float]], options: Options) -> Parsed:
    """A list of (text, label) as an example; with scores_are=teacher the labels are the teacher's scores too."""
    candidates, labels = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    teacher = labels if options.scores_are == "teacher" else None
    return Parsed(query, candidates, labels if teacher else [options.scaled(value) for value in labels], teacher)


def columns(record: Record, options: Options) -> Parsed:
    """Any record, by the field map: query with candidates and relevance, or with positives and negatives."""
    query = text(options.get(record, "query"), "query")
    if "candidates" in options.fields:
        candidates = texts(_list(options.get(record, "candidates")), "candidates")
        given = options.get(record, "relevance")
        values = numbers(given if isinstance(given, list) else [given], len(candidates), "relevance", "candidates")
        if not candidates:
            raise BadRecord("candidates is empty")
        return Parsed(query, candidates, [options.scaled(value) for value in values])
    positives = texts(_list(options.get(record, "positives")), "positives")
    given = options.optional(record, "negatives") if "negatives" in options.fields else None
    return _two_lists(query, positives, texts(_list(given), "negatives") if given is not None else [])


def _list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


FORMATS: dict[str, Callable[[Record, Options], Parsed]] = {
    "contrastive": contrastive,
    "contrastive_raw": contrastive_raw,
    "preferences": preferences,
    "pos_neg": pos_neg,
    "grouped": grouped,
    "flat": grouped,  # once its lines are gathered
    "columns": columns,
}
KEYS: dict[str, Sequence[str]] = {
    "contrastive": ("query", "positives"),
    "contrastive_raw": ("query.text", "positives.text"),
    "preferences": ("query", "passage1", "passage2"),
    "pos_neg": ("query", "pos"),
    "grouped": ("query", "hits"),
    "flat": ("query", "content"),
}


def detect(record: Record, fields: Mapping[str, Any]) -> str:
    """The format of a file by the keys of a record. Raises BadRecord where none or several match."""
    matches = [name for name, keys in KEYS.items() if all(extract(record, key) is not None for key in keys)]
    if "contrastive_raw" in matches:
        matches.remove("contrastive")  # the same keys, one level deeper
    if not matches or "candidates" in fields:
        of_map = [
            name
            for name, keys in KEYS.items()
            if all(extract(record, fields.get(key, key)) is not None for key in keys)
        ]
        matches = ["columns"] if "candidates" in fields or ("positives" in fields and len(of_map) != 1) else of_map
    if len(matches) == 1:
        return matches[0]
    known = "; ".join(f"{name}: {', '.join(keys)}" for name, keys in KEYS.items())
    what = "no format has" if not matches else f"{' and '.join(matches)} both have"
    raise BadRecord(
        f"{what} these keys (found: {', '.join(map(str, record))}); set format, or the keys of the field map. "
        f"Known: {known}"
    )


def normal(text: str) -> str:
    """A text as it is compared: NFC, white space collapsed."""
    return " ".join(unicodedata.normalize("NFC", text).split())
