"""Requests of a reranker: queries with the documents of a first stage, from a TREC run or from JSON Lines."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rankpo.data.readers.beir import Beir, document_text
from rankpo.data.readers.files import NotARecord, records
from rankpo.data.readers.trec import order, read_run

TEXT_KEYS = ("text", "segment", "contents", "content", "body", "passage")
ID_KEYS = ("id", "_id")
MAX_SHOWN = 10

# From a query and its scores, the documents to keep, best first.
Hits = Callable[[str, Mapping[str, float]], Mapping[str, float]]


@dataclass(frozen=True)
class Request:
    """One query and the documents to rerank, in the order of the first stage. scores: those of the first stage."""

    id: str
    query: str
    document_ids: tuple[str, ...]
    documents: tuple[str, ...]
    scores: tuple[float, ...]

    def chosen(self, hits: Hits) -> Request:
        """The request with the documents that `hits` returns, in that order."""
        scores = hits(self.id, dict(zip(self.document_ids, self.scores, strict=True)))
        texts = dict(zip(self.document_ids, self.documents, strict=True))
        return replace(
            self,
            document_ids=tuple(scores),
            documents=tuple(texts[name] for name in scores),
            scores=tuple(scores.values()),
        )


def of_run(run: str | Path, folder: Beir, missing_ids: str, hits: Hits) -> tuple[list[Request], int]:
    """The requests of a run over a BEIR folder, and the number of documents that were dropped without a text.

    missing_ids: `error` raises ValueError with the first ten ids without a text, `drop` excludes such documents.
    """
    first_stage = read_run(run)
    ranked = {query: list(hits(query, scores)) for query, scores in first_stage.items()}
    wanted = {name for names in ranked.values() for name in names}
    documents = {name: text for name, text in folder.corpus() if name in wanted}
    queries = dict(folder.queries())
    strange = [name for name in ranked if name not in queries] + sorted(wanted - set(documents))
    if strange and missing_ids == "error":
        raise ValueError(
            f"{run}: {len(strange)} ids have no text in {folder.path}: {', '.join(strange[:MAX_SHOWN])}; "
            "set task.missing_ids=drop to exclude them"
        )
    requests = []
    for query in filter(queries.__contains__, ranked):
        kept = [name for name in ranked[query] if name in documents]
        scores = tuple(first_stage[query][name] for name in kept)
        requests.append(Request(query, queries[query], tuple(kept), tuple(documents[name] for name in kept), scores))
    return requests, sum(map(len, ranked.values())) - sum(len(request.documents) for request in requests)


def of_file(path: str | Path, document_format: str = "{title} {text}") -> Iterator[Request]:
    """Requests of a JSON file, one for each record, in RankLLM's format or with plain texts.

    {"query": text or {"text", "qid"}, "candidates" or "documents": [text or {"docid", "score", "title", "doc" or
    "text"}]}. Documents are sorted by their scores, with ties as in trec_eval; without scores, they keep the order of
    the file. The default id of a query is its place in the file, that of a document the digest of its text.
    document_format: a template with `{title}` and `{text}`, as for BEIR folders.
    Raises ValueError, with the place, for a record in another format.
    """
    for place, record in records(Path(path)):
        if isinstance(record, NotARecord):
            raise ValueError(f"{place}: {record}")
        query: Any = record.get("query")
        name = _id_of(record, ("qid", "query_id", *ID_KEYS))
        if isinstance(query, Mapping):
            query, name = query.get("text"), _id_of(query, ("qid", "query_id", *ID_KEYS)) or name
        candidates = record.get("candidates", record.get("documents"))
        if not isinstance(query, str) or not query.strip():
            raise ValueError(f"{place}: needs a query with a text (found: {', '.join(record) or 'nothing'})")
        if not isinstance(candidates, list):
            raise ValueError(f"{place}: needs a list of candidates or documents (found: {', '.join(record)})")
        parsed = [
            _candidate(item, f"{place}: candidates[{index}]", document_format) for index, item in enumerate(candidates)
        ]
        yield _request(name if name is not None else place.replace(" ", "_"), query.strip(), parsed, place)


def _request(name: str, query: str, parsed: Sequence[tuple[str, str, float | None]], place: str) -> Request:
    ids = tuple(identity for identity, _, _ in parsed)
    if len(set(ids)) < len(ids):
        twice = next(identity for identity in ids if ids.count(identity) > 1)
        raise ValueError(f"{place}: document {twice} appears more than once")
    texts = {identity: text for identity, text, _ in parsed}
    scores = {identity: score for identity, _, score in parsed if score is not None}
    if scores and len(scores) < len(ids):
        lacking = next(identity for identity in ids if identity not in scores)
        raise ValueError(
            f"{place}: document {lacking} has no score, but other documents have; set a score for all documents or for none"
        )
    if not scores:
        scores = {identity: -float(rank) for rank, identity in enumerate(ids, 1)}
    names = tuple(order(scores))
    return Request(name, query, names, tuple(texts[n] for n in names), tuple(scores[n] for n in names))


def _candidate(item: object, place: str, document_format: str) -> tuple[str, str, float | None]:
    """Returns (id, text, score) of a document."""
    outer: dict[str, object] = dict(item) if isinstance(item, Mapping) else {"doc": item}
    document: object = outer.get("doc", outer)
    text, title = document, outer.get("title")
    if isinstance(document, Mapping):
        text = next((document[key] for key in TEXT_KEYS if isinstance(document.get(key), str)), None)
        title = document.get("title") or title
    if not isinstance(text, str):
        raise ValueError(f"{place} has no text; allowed: a text, or one under doc, {', '.join(TEXT_KEYS)}")
    if not isinstance(title, str | None):
        raise ValueError(f"{place}.title must be a text, got {title!r}")
    whole = text.strip() if title is None else document_text(document_format, title.strip(), text)
    name = _id_of(outer, ("docid", "doc_id", "pid", *ID_KEYS))
    identity = name if name is not None else hashlib.sha256(whole.encode()).hexdigest()[:16]
    return identity, whole, _score(outer.get("score"), place)


def _id_of(record: Mapping[str, object], keys: Sequence[str]) -> str | None:
    """The first id under one of the keys, as a text."""
    return next((str(record[key]) for key in keys if record.get(key) is not None), None)


def _score(given: Any, place: str) -> float | None:
    """The score as a finite number, also from a string; None if it is missing."""
    if given is None:
        return None
    try:
        value = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{place}.score must be a finite number, got {given!r}")
    return value
