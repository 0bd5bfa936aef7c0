"""Record formats, each a function from a record to the parts of an example."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rankpo.data.readers import layouts
from rankpo.data.readers.fields import BadRecord, Options, Record, extract, inner, normal, number, numbers, text, texts
from rankpo.data.readers.files import kind, records
from rankpo.data.readers.parsed import Parsed, labelled, of_lists, two_lists


def contrastive(record: Record, options: Options) -> Parsed:
    """{"query", "positives": [..], "negatives"?: [..], "pos_scores"?, "neg_scores"?}."""
    query = text(options.get(record, "query"), "query")
    positives = texts(_lone(options.get(record, "positives"), "positives", options), "positives")
    given = _lone(options.optional(record, "negatives"), "negatives", options)
    if not positives:
        raise BadRecord("positives is empty")
    negatives = None if given is None else texts(given, "negatives")
    return two_lists(query, positives, negatives, record, options, ("positives", "negatives"))


def _lone(value: object, role: str, options: Options) -> object:
    """A list with the single text of a field that the field map names. The format's own field must be a list."""
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
        options.use("scores")
        # RAG-Retrieval uses the name `scores` in files for embedding models.
        record = {**record, "pos_scores": record["scores"]}
    return two_lists(query, positives, negatives, record, options)


def grouped(record: Record, options: Options) -> Parsed:
    """{"query", "hits": [{"content", "label" or "score"}, ..]}. With a label, the score is a teacher's score."""
    query = text(options.get(record, "query"), "query")
    hits = options.get(record, "hits")
    if not isinstance(hits, list) or not hits:
        raise BadRecord("hits must be a list that is not empty")
    parsed = labelled(
        query, [labelled_text(hit, options, f"hits[{index}].") for index, hit in enumerate(hits)], options
    )
    if "label" in options.fields or not all("label" in hit and "score" in hit for hit in hits):
        return parsed
    options.use("hits")
    return replace(parsed, teacher=[number(hit["score"], f"hits[{index}].score") for index, hit in enumerate(hits)])


def labelled_text(record: object, options: Options, place: str = "") -> tuple[str, float]:
    """Returns (text, label) of {"content", "label" or "score"}. place: a prefix of the names in messages."""
    if not isinstance(record, Mapping):
        raise BadRecord(f"{place.rstrip('.')} must be an object, got {type(record).__name__}")
    content = options.fields.get("content", "content")
    if not place:  # The record is a line of the file, and not an element of a list of hits.
        options.use(content)
    label = options.fields.get("label") or next((key for key in ("label", "score") if key in record), "label")
    value = extract(record, label)
    if not place:
        options.use(label)
    if value is None:
        raise BadRecord(
            f"no field {place + str(label)!r} (found: {', '.join(map(str, record))}); every text needs a label"
        )
    return text(extract(record, content), f"{place}{content}"), number(value, f"{place}{label}")


def labelled_line(record: Record, options: Options) -> tuple[str, tuple[str, float]]:
    """Returns (query, (text, label)) of a line with one labelled text."""
    if options.order[1] is not None:
        return layouts.labelled_pair(record, options)
    return text(options.get(record, "query"), "query"), labelled_text(record, options)


def columns(record: Record, options: Options) -> Parsed:
    """A record in any format, read by the field map: a query with candidates and relevance, or positives and negatives."""
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


def _list(value: object) -> object:
    return [value] if isinstance(value, str) else value


FORMATS: dict[str, Callable[[Record, Options], Parsed]] = {
    "contrastive": contrastive,
    "contrastive_raw": contrastive_raw,
    "preferences": preferences,
    "pos_neg": pos_neg,
    "grouped": grouped,
    "flat": grouped,  # After its lines have been merged.
    "columns": columns,
    "labeled_list": layouts.labeled_list,
    "tevatron": layouts.tevatron,
    "ids": layouts.ids,
    "nemo": layouts.nemo,
    "swift_messages": layouts.swift_messages,
    "swift": layouts.swift,
    "dpr": layouts.dpr,
    "cohere": layouts.cohere,
    "set": layouts.text_set,
    "ordered": layouts.ordered,
}
KEYS: dict[str, Sequence[str]] = {  # `a|b` means one of the two.
    "contrastive": ("query", "positives"),
    "contrastive_raw": ("query.text", "positives.text"),
    "preferences": ("query", "passage1", "passage2"),
    "pos_neg": ("query", "pos"),
    "grouped": ("query", "hits"),
    "flat": ("query", "content"),
    "labeled_list": ("query", "documents|docs", "labels|scores"),
    "tevatron": ("query", "positive_passages"),
    "ids": ("query_text|query", "positive_document_ids"),
    "nemo": ("question|query", "pos_doc"),
    "swift_messages": ("messages", "positive_messages"),
    "swift": ("query", "response"),
    "dpr": ("question", "positive_ctxs"),
    "cohere": ("query", "relevant_passages"),
    "set": ("set",),
}
ELSEWHERE = {  # Keys of records that other dataset classes read, by the option that has such a class.
    "chat": ("chosen", "rejected", "completion", "messages", "conversations", "prompt", "output_A", "prompt_id"),
    "ranked_lists": ("passages", "ranking"),
}


def detect(record: Record, fields: Mapping[str, object]) -> str:
    """The format of a file by the keys of a record. Raises BadRecord if no format matches, or several.

    A file without the keys of any format is read by the order of its columns, as in sentence-transformers.
    """
    matches = [name for name, keys in KEYS.items() if all(_there(record, key, {}) for key in keys)]
    if "contrastive_raw" in matches:
        matches.remove("contrastive")  # contrastive_raw has the same keys, one level deeper.
    if len(matches) > 1 and "swift" in matches:
        matches.remove("swift")  # `response` can also be the answer of a judge.
    if "pos_neg" in matches and isinstance(record.get("pos"), str):
        matches.remove("pos_neg")  # Single texts are columns in order.
    if not matches or "candidates" in fields:
        of_map = [name for name, keys in KEYS.items() if fields and all(_there(record, key, fields) for key in keys)]
        matches = ["columns"] if "candidates" in fields or ("positives" in fields and len(of_map) != 1) else of_map
    if not matches and not set(fields) - {"id", "prompt"} and layouts.is_ordered(record) and _elsewhere(record) is None:
        return "ordered"
    if len(matches) == 1:
        return matches[0]
    known = "; ".join(f"{name}: {', '.join(keys).replace('|', ' or ')}" for name, keys in KEYS.items())
    what = "no format has" if not matches else f"{' and '.join(matches)} both have"
    other = _elsewhere(record)
    hint = f"; datasets=[{other}] reads records with such keys" if other and not matches else ""
    raise BadRecord(
        f"{what} these keys (found: {', '.join(map(str, record))}){hint}; set format, or the keys of the field map. "
        f"Known: {known}"
    )


def _there(record: Record, key: str, fields: Mapping[str, object]) -> bool:
    """Whether a record has a key, or one of the alternatives `a|b`, by the names of the field map."""
    return any(extract(record, fields.get(name, name)) is not None for name in key.split("|"))


def reader_of(path: Path) -> tuple[str, str | None]:
    """How to read a file and what to train on it, by the keys of its first record.

    Returns the option of `datasets` (jsonl, chat or ranked_lists), and the option of `loss` that such records are for;
    None: a loss on positives, which is the default.
    """
    first = next((record for _, record in records(path)), None) if path.is_file() and kind(path) else None
    if not isinstance(first, Mapping):
        return "jsonl", None
    try:
        return "jsonl", "rankpo" if detect(first, {}) == "preferences" else None
    except BadRecord:
        other = _elsewhere(first)
    if other is None:
        return "jsonl", None
    return other, "plackett_luce" if other == "ranked_lists" else _loss_of_completions(first)


def _loss_of_completions(record: Record) -> str:
    """The option of `loss` for records of prompts and completions."""
    if "chosen" in record or "output_A" in record:
        return "dpo"
    if "reward" in record:
        return "ppo"
    return "kto" if "label" in record else "sft"


def _elsewhere(record: Record) -> str | None:
    """The dataset option that reads the keys of a record, or None."""
    if isinstance(record.get("query"), Mapping) and isinstance(record.get("candidates"), list):
        return "ranked_lists"  # RankLLM's results
    return next((name for name, keys in ELSEWHERE.items() if sum(key in record for key in keys) >= 2), None)
