"""Every record format as one function from a record to an example's parts. interop.md sections 1.1 to 1.6."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rankpo.data.readers.fields import BadRecord, Options, Record, extract, inner, normal, number, numbers, text, texts


@dataclass(frozen=True)
class Parsed:
    """An example before it has an id and a place. relevant, grades: as in `types.Example`."""

    query: str
    candidates: list[str]
    relevance: list[float]
    teacher: list[float] | None = None
    confidence: float | None = None
    relevant: list[bool] | None = None
    grades: list[float] | None = None


def contrastive(record: Record, options: Options) -> Parsed:
    """{"query", "positives": [..], "negatives"?: [..], "pos_scores"?, "neg_scores"?}."""
    query = text(options.get(record, "query"), "query")
    positives = texts(_lone(options.get(record, "positives"), "positives", options), "positives")
    given = _lone(options.optional(record, "negatives"), "negatives", options)
    if not positives:
        raise BadRecord("positives is empty")
    negatives = None if given is None else texts(given, "negatives")
    return two_lists(query, positives, negatives, record, options, ("positives", "negatives"))


def _lone(value: Any, role: str, options: Options) -> Any:
    """A text under a name that the field map gives, as a list of it; under the format's own name it is an error."""
    return [value] if isinstance(value, str) and role in options.fields else value


def contrastive_raw(record: Record, options: Options) -> Parsed:
    """{"query": {"text"}, "positives": {"text": [..], "index"?: [..]}, "negatives"?: {"text": [..]}}."""
    query = text(inner(options.get(record, "query"), "query"), "query.text")
    given = options.get(record, "positives")
    positives = texts(inner(given, "positives"), "positives.text")
    if "index" in given:
        numbers(given["index"], len(positives), "positives.index", "positives.text")
    negatives = options.optional(record, "negatives")
    if not positives:
        raise BadRecord("positives is empty")
    return of_lists(
        query, positives, [] if negatives is None else texts(inner(negatives, "negatives"), "negatives.text")
    )


def of_lists(query: str, positives: list[str], negatives: list[str]) -> Parsed:
    """Positives and negatives without any score."""
    relevant = [True] * len(positives) + [False] * len(negatives)
    return Parsed(query, positives + negatives, [float(value) for value in relevant], relevant=relevant)


def two_lists(
    query: str,
    positives: list[str],
    negatives: list[str] | None,
    record: Record,
    options: Options,
    names: tuple[str, str] = ("pos", "neg"),
) -> Parsed:
    """Positives and negatives, which decide what is relevant whatever the scores of a record are.

    Scores are labels and a teacher's values at once (with scores_are=teacher, the latter alone); where one list has
    none, its labels are 1 or 0, as in RAG-Retrieval. A record with scores and without a list of negatives may hold good
    and bad texts under its one list: the scores are its labels, and only a threshold says which of them are relevant.
    """
    scores = options.optional(record, "pos_scores"), options.optional(record, "neg_scores")
    if scores[1] is not None and negatives is None:
        raise BadRecord(f"neg_scores without {names[1]}")
    if scores[0] is None and scores[1] is None:
        return of_lists(query, positives, negatives or [])
    given = [None if scores[0] is None else numbers(scores[0], len(positives), "pos_scores", names[0])]
    given.append(None if scores[1] is None else numbers(scores[1], len(negatives or []), "neg_scores", names[1]))
    if negatives is None:
        return labelled(query, list(zip(positives, given[0] or [], strict=True)), options)
    lists = of_lists(query, positives, negatives)
    whole = [values for values, size in zip(given, (len(positives), len(negatives)), strict=True) if size]
    teacher = [value for values in whole for value in values or []]
    known = all(values is not None for values in whole)
    if options.scores_are == "teacher":
        if not known:
            raise BadRecord(f"{names[0]} and {names[1]} must both have scores with scores_are=teacher")
        return replace(lists, teacher=teacher)
    filled = [
        [options.scaled(value) for value in values] if values is not None else [1.0 - end] * size
        for end, (values, size) in enumerate(zip(given, (len(positives), len(negatives)), strict=True))
    ]
    return replace(lists, teacher=teacher if known else None, grades=filled[0] + filled[1])


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
    """{"query", "pos": [..], "neg"?: [..], "pos_scores"? or "scores"?, "neg_scores"?}: FlagEmbedding, RAG-Retrieval."""
    query = text(options.get(record, "query"), "query")
    positives = texts(options.get(record, "positives", "pos"), "pos")
    given = options.optional(record, "negatives", "neg")
    negatives = None if given is None else texts(given, "neg")
    if not positives and not negatives:
        raise BadRecord("no candidate at all")
    if "scores" in record and "pos_scores" not in record and "pos_scores" not in options.fields:
        record = {**record, "pos_scores": record["scores"]}  # RAG-Retrieval's name in files for embedding models
    return two_lists(query, positives, negatives, record, options)


def grouped(record: Record, options: Options) -> Parsed:
    """{"query", "hits": [{"content", "label" or "score"}, ..]}; beside a label, a score is a teacher's."""
    query = text(options.get(record, "query"), "query")
    hits = options.get(record, "hits")
    if not isinstance(hits, list) or not hits:
        raise BadRecord("hits must be a list that is not empty")
    parsed = labelled(
        query, [labelled_text(hit, options, f"hits[{index}].") for index, hit in enumerate(hits)], options
    )
    if "label" in options.fields or not all("label" in hit and "score" in hit for hit in hits):
        return parsed
    return replace(parsed, teacher=[number(hit["score"], f"hits[{index}].score") for index, hit in enumerate(hits)])


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
    relevant = options.relevant(labels)
    if options.scores_are == "teacher":
        return Parsed(query, candidates, labels, labels, relevant=relevant)
    return Parsed(query, candidates, [options.scaled(value) for value in labels], relevant=relevant)


def columns(record: Record, options: Options) -> Parsed:
    """Any record, by the field map: query with candidates and relevance, or with positives and negatives."""
    query = text(options.get(record, "query"), "query")
    if "candidates" in options.fields:
        candidates = texts(_list(options.get(record, "candidates")), "candidates")
        given = options.get(record, "relevance")
        values = numbers(given if isinstance(given, list) else [given], len(candidates), "relevance", "candidates")
        if not candidates:
            raise BadRecord("candidates is empty")
        relevant = options.relevant(values)
        return Parsed(query, candidates, [options.scaled(value) for value in values], relevant=relevant)
    positives = texts(_list(options.get(record, "positives")), "positives")
    given = options.optional(record, "negatives")
    if not positives:
        raise BadRecord("positives is empty")
    negatives = None if given is None else texts(_list(given), "negatives")
    return two_lists(query, positives, negatives, record, options, ("positives", "negatives"))


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
