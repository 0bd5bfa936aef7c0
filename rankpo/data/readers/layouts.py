"""Layouts of records of other tools: sentence-transformers, Tevatron, DPR, Cohere, NeMo and ms-swift."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from rankpo.data.readers.fields import BadRecord, Options, Record, filled, items, number, numbers, text, texts
from rankpo.data.readers.parsed import Parsed, labelled, of_lists

LABELS = ("label", "labels", "score", "scores")  # sentence-transformers' names of label columns.
NOT_TEXTS = re.compile(  # Columns of strings that describe a record and are not its texts.
    r"(.*_)?(id|ids|_id|qid|pid|did|cid|uid|docid|guid|idx|index|uuid|url|uri|link|source|dataset|subset|split|domain|lang|language|title|category|topic"
    r"|task|task_name|type|meta|metadata|author|license|date|timestamp|prompt|instruction|prompt_for_query)",
    re.IGNORECASE,
)
CLASSES = {"premise", "hypothesis"}  # Columns of natural language inference, whose labels are classes.

Lookup = Callable[[str], str | None]


def order_of(record: Record) -> tuple[list[str], str | None]:
    """The columns of texts in order, and the column of labels or None, by the rule of sentence-transformers."""
    label = next((name for name in record if name in LABELS), None)
    columns = [str(name) for name in record if name != label and _holds_text(record[name])]
    texts_of = [name for name in columns if not NOT_TEXTS.fullmatch(name)]
    if len(texts_of) == 1 and "title" in columns:  # Pairs of a title and a body.
        texts_of = [name for name in columns if name in (*texts_of, "title")]
    return texts_of, label


def _holds_text(value: object) -> bool:
    listed = isinstance(value, list | tuple) and bool(value) and all(isinstance(item, str) for item in value)
    return isinstance(value, str) or listed or value is None


def is_ordered(record: Record) -> bool:
    """Whether a record has columns with an anchor and at least one more text."""
    columns, label = order_of(record)
    return len(columns) > 1 and isinstance(record[columns[0]], str) and not (label and set(columns) >= CLASSES)


def is_flat(record: Record) -> bool:
    """Whether a record is an anchor with one labelled text; lines with equal anchors are then merged into one list."""
    columns, label = order_of(record)
    both = len(columns) == 2 and all(isinstance(record[name], str) for name in columns)
    return both and label is not None and not isinstance(record[label], list | tuple)


def ordered(record: Record, options: Options) -> Parsed:
    """Columns in order, with any names: anchor, positive, negatives; or anchor, texts and their labels.

    In (anchor, positive, negatives, label), the label comes from a teacher: margins of the positive over each negative,
    or the scores of all texts. Empty numbered columns are skipped.
    """
    columns, label = options.order
    options.use(*columns, *([label] if label else []))
    _needs(record, columns[:2])
    _needs_no_more(record, [*columns, label])
    query = text(record[columns[0]], columns[0])
    first = record[columns[1]]
    positives = texts(first, columns[1]) if isinstance(first, list | tuple) else [text(first, columns[1])]
    if label is not None and len(columns) == 2:
        return _with_labels(query, positives, record, columns[1], label, options)
    negatives = [item for name in columns[2:] for item in filled(record.get(name), name)]
    parsed = of_lists(query, positives, negatives)
    if label is None:
        return parsed
    return replace(parsed, teacher=_teacher(record.get(label), label, len(positives), len(negatives)))


def _needs(record: Record, names: Sequence[str]) -> None:
    """Raises BadRecord for a column that is missing or null."""
    for name in names:
        if name not in record:
            raise BadRecord(f"no field {name!r} (found: {', '.join(map(str, record))}), which the first record has")
        if record[name] is None:
            raise BadRecord(f"field {name!r} is null")


def _needs_no_more(record: Record, known: Sequence[str | None]) -> None:
    """Raises BadRecord for a column of texts that the first record lacks: its role would be unknown."""
    for name, value in record.items():
        if name not in known and value and _holds_text(value) and not NOT_TEXTS.fullmatch(str(name)):
            raise BadRecord(
                f"the field {name!r} holds a text, and the first record of the file does not have it; add it to the first "
                "record (null is allowed), or set the keys of the field map"
            )


def labelled_pair(record: Record, options: Options) -> tuple[str, tuple[str, float]]:
    """Returns (anchor, (text, label)) of a record with two texts and a label."""
    (first, second), label = options.order
    assert label is not None
    options.use(first, second, label)
    _needs(record, (first, second, label))
    value = float(record[label]) if isinstance(record[label], bool) else record[label]
    return text(record[first], first), (text(record[second], second), number(value, label))


def described(columns: Sequence[str], label: str | None) -> list[str]:
    """The role of each column, for the log."""
    roles = ["anchor", "texts" if label and len(columns) == 2 else "positive", *["negative"] * (len(columns) - 2)]
    said = [f"{name} ({role})" for name, role in zip(columns, roles, strict=True)]
    return [*said, f"{label} ({'label' if len(columns) == 2 else 'teacher'})"] if label else said


def _with_labels(
    query: str, candidates: list[str], record: Record, column: str, label: str, options: Options
) -> Parsed:
    values = record.get(label)
    given = values if isinstance(values, list | tuple) else [values]
    return labelled(query, list(zip(candidates, numbers(given, len(candidates), label, column), strict=True)), options)


def _teacher(value: object, label: str, num_positives: int, num_negatives: int) -> list[float]:
    """The teacher scores of positives and negatives. Margins become negative scores, and the positive's score is 0."""
    given = value if isinstance(value, list | tuple) else [value]
    if len(given) == num_positives + num_negatives and len(given) > 1:
        return numbers(given, len(given), label, "texts")
    if len(given) == num_negatives and num_positives == 1:
        return [0.0, *(-number(margin, f"{label}[{index}]") for index, margin in enumerate(given))]
    raise BadRecord(
        f"{label} must be the scores of {num_positives + num_negatives} texts, or the positive's margins over "
        f"{num_negatives} negatives, got {len(given)} values"
    )


def labeled_list(record: Record, options: Options) -> Parsed:
    """{"query", "documents" or "docs": [..], "labels" or "scores": [..]}: sentence-transformers' lists."""
    query = text(options.get(record, "query"), "query")
    name = "documents" if "documents" in record else "docs"
    label = "labels" if "labels" in record else "scores"
    options.use(name, label)
    candidates = texts(record.get(name), name)
    if not candidates:
        raise BadRecord(f"{name} is empty")
    return labelled(
        query, list(zip(candidates, numbers(record.get(label), len(candidates), label, name), strict=True)), options
    )


def tevatron(record: Record, options: Options) -> Parsed:
    """{"query_id", "query", "positive_passages": [{"docid", "title"?, "text"}], "negative_passages"?}."""
    query = text(options.get(record, "query"), "query")
    options.use("positive_passages", "negative_passages")
    positives, negatives = (
        [passage(item, f"{key}[{index}]") for index, item in enumerate(items(record.get(key), key))]
        for key in ("positive_passages", "negative_passages")
    )
    if not positives:
        raise BadRecord("positive_passages is empty")
    return of_lists(query, positives, negatives)


def dpr(record: Record, options: Options) -> Parsed:
    """{"question", "positive_ctxs": [{"title", "text"}], "hard_negative_ctxs"?, "negative_ctxs"?}: DPR."""
    sides = ("positive_ctxs",), ("hard_negative_ctxs", "negative_ctxs")
    options.use("question", *sides[0], *sides[1])
    query = text(record.get("question"), "question")
    found = [
        [passage(item, f"{key}[{index}]") for key in keys for index, item in enumerate(items(record.get(key), key))]
        for keys in sides
    ]
    if not found[0]:
        raise BadRecord("positive_ctxs is empty")
    return of_lists(query, *found)


def cohere(record: Record, options: Options) -> Parsed:
    """{"query", "relevant_passages": [..], "hard_negatives"?: [..]}: Cohere's fine-tuning of rerankers."""
    query = text(options.get(record, "query"), "query")
    options.use("relevant_passages", "hard_negatives")
    positives = texts(record["relevant_passages"], "relevant_passages")
    if not positives:
        raise BadRecord("relevant_passages is empty")
    return of_lists(query, positives, filled(record.get("hard_negatives"), "hard_negatives"))


def text_set(record: Record, options: Options) -> Parsed:
    """{"set": [..]}: texts of equal meaning, the first of which is the query (sentence-transformers' training data)."""
    options.use("set")
    first, *others = texts(record["set"], "set") or [""]
    if not others:
        raise BadRecord("set must have two texts or more")
    return of_lists(first, others, [])


def passage(item: object, place: str) -> str:
    """A text, or {"title"?, "text"}."""
    if not isinstance(item, Mapping):
        return text(item, place)
    title = str(item.get("title") or "").strip()
    return f"{title} {text(item.get('text'), f'{place}.text')}".strip()


def ids(record: Record, options: Options) -> Parsed:
    """{"query_id", "query_text" or "query", "positive_document_ids", "negative_document_ids"?}: Tevatron, task=mine."""
    name = "query_text" if "query_text" in record else "query"
    options.use(name, "positive_document_ids", "negative_document_ids")
    query = text(record.get(name), name)
    keys = ("positive_document_ids", "negative_document_ids")
    sides = [_texts_of(items(record.get(key), key), key, options) for key in keys]
    if not sides[0]:
        raise BadRecord("positive_document_ids is empty")
    return of_lists(query, *sides)


def nemo(record: Record, options: Options) -> Parsed:
    """{"question" or "query", "pos_doc", "neg_doc"?}: ids with a corpus ({"id"}), or texts."""
    name = "question" if "question" in record else "query"
    options.use(name, "pos_doc", "neg_doc", "corpus_id")
    query = text(record.get(name), name)
    sides = [_documents(record.get(key), key, options) for key in ("pos_doc", "neg_doc")]
    if not sides[0]:
        raise BadRecord("pos_doc is empty")
    return of_lists(query, *sides)


def _documents(value: object, key: str, options: Options) -> list[str]:
    items = value if isinstance(value, list | tuple) else [] if value is None else [value]
    found = []
    for index, item in enumerate(items):
        place = f"{key}[{index}]"
        if isinstance(item, Mapping) and "text" not in item:
            found += _texts_of([item.get("id")], place, options)
        elif options.lookup is not None and isinstance(item, str):
            found += _texts_of([item], place, options)
        else:
            found.append(passage(item, place))
    return found


def _texts_of(identities: Sequence[object], key: str, options: Options) -> list[str]:
    """The texts of documents, given by id."""
    if options.lookup is None:
        raise BadRecord(f"{key} names documents by id; set {options.key}.corpus to the file or folder of their texts")
    found = []
    for index, identity in enumerate(identities):
        content = options.lookup(str(identity))
        if content is None:
            raise BadRecord(f"{key}[{index}]: the corpus has no document {str(identity)!r}")
        found.append(text(content, f"the text of document {identity!r}"))
    return found


def swift_messages(record: Record, options: Options) -> Parsed:
    """{"messages", "positive_messages": [messages], "negative_messages"?: [messages], "label"?}: ms-swift."""
    options.use("messages", "positive_messages", "negative_messages")
    query = _contents(record["messages"], "messages")
    sides = [_conversations(record.get(f"{name}_messages"), f"{name}_messages") for name in ("positive", "negative")]
    return _swift(query, sides[0], sides[1], record, options)


def swift(record: Record, options: Options) -> Parsed:
    """{"query", "response", "rejected_response"?: text or list, "label"?}: ms-swift before messages."""
    query = text(options.get(record, "query"), "query")
    options.use("response", "rejected_response")
    return _swift(
        query,
        filled(record["response"], "response"),
        filled(record.get("rejected_response"), "rejected_response"),
        record,
        options,
    )


def _swift(query: str, positives: list[str], negatives: list[str], record: Record, options: Options) -> Parsed:
    if not positives:
        raise BadRecord("no positive text")
    label = record.get("label")
    options.use("label")
    if label is None:
        return of_lists(query, positives, negatives)
    if negatives or len(positives) > 1:
        raise BadRecord("the record has a label and one text, but no negatives")
    return labelled(query, [(positives[0], number(label, "label"))], options)


def _conversations(value: object, key: str) -> list[str]:
    """The texts of a list of conversations, or of a single conversation."""
    if not isinstance(value, list):
        return []
    several = value if all(isinstance(item, list) for item in value) else [value]
    return [_contents(item, f"{key}[{index}]") for index, item in enumerate(several)]


def _contents(turns: object, key: str) -> str:
    """The joined contents of the turns of a query or document, which usually has a single turn."""
    if not isinstance(turns, list) or not turns:
        raise BadRecord(f"{key} must be a list of turns that is not empty")
    parts = []
    for index, turn in enumerate(turns):
        if not isinstance(turn, Mapping) or "content" not in turn:
            raise BadRecord(f"{key}[{index}] must be an object with role and content")
        parts.append(text(turn["content"], f"{key}[{index}].content"))
    return "\n".join(parts)
