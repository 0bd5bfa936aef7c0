"""BEIR collections: a corpus, queries and judgements, in a folder or by the name of a set on the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson
import xxhash

from rankpo.data.grade_pairs import as_preferences, check_preferences
from rankpo.data.readers.collection_parts import FolderParts, HubParts, Parts
from rankpo.data.readers.fields import BadRecord, check_id
from rankpo.data.shape import Declares
from rankpo.types import Example

SETS = (  # The datasets of BEIR on the hub.
    *("arguana", "climate-fever", "cqadupstack", "dbpedia-entity", "fever", "fiqa", "hotpotqa", "msmarco", "nfcorpus"),
    *("nq", "quora", "scidocs", "scifact", "trec-covid", "webis-touche2020"),
)


@dataclass(kw_only=True)
class Beir(Declares):
    """A corpus with graded judgements. As training data, an example holds every judged document of a query.

    path: a folder with corpus.jsonl, queries.jsonl and qrels/<split>.tsv. With None, `name` is a dataset of BeIR on the
    hub.
    split: the split of the qrels. None reads a folder without qrels; `qrels` and `examples` then raise ValueError.
    document_format: a template with `{title}` and `{text}`; the result is stripped.
    missing_ids: `error` raises ValueError, with the first ten ids, if judged ids are missing in the corpus or the
    queries; `drop` excludes them and counts them in `dropped`.
    ignore_identical_ids: removes a hit with the id of its query, as ArguAna and Quora require.
    preferences: `grades` makes preference pairs of relevant documents of different grades, see `grade_pairs.py`.

    Raises FileNotFoundError at construction for a missing file. Raises ValueError, with file and line, when it reads a
    line without `_id` or `text`, or a duplicate id.
    """

    name: str
    path: str | None = None
    split: str | None = "test"
    document_format: str = "{title} {text}"
    missing_ids: str = "error"
    ignore_identical_ids: bool = True
    relevant_from: int = 1
    gain: str = "linear"
    preferences: str | None = None
    pairs_per_query: int = 6
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_preferences(self.preferences, self.pairs_per_query)
        if self.missing_ids not in ("error", "drop"):
            raise ValueError(f"missing_ids must be one of error, drop, got {self.missing_ids!r}")
        if self.gain not in ("exp", "linear"):
            raise ValueError(f"gain must be one of exp, linear, got {self.gain!r}")
        if self.relevant_from < 1:
            raise ValueError(f"relevant_from must be >= 1, got {self.relevant_from}")
        if "{text}" not in self.document_format:
            raise ValueError(f"document_format must have {{text}}, got {self.document_format!r}")
        self._parts = self._open()
        self.dropped = 0

    def _open(self) -> Parts:
        """The parts of the collection. Raises FileNotFoundError or ValueError."""
        if self.path is not None:
            return FolderParts(Path(self.path), self.split)
        if self.name not in SETS:
            raise ValueError(
                f"path is not set, and name={self.name} is no set of BEIR; set path to a folder, or name to one of "
                f"{', '.join(SETS)}"
            )
        split = self.split or "test"
        key = f"datasets.{self.name}"
        return HubParts(name=f"BeIR/{self.name}", qrels_name=f"BeIR/{self.name}-qrels", split=split, key=key)

    @property
    def judgements(self) -> Beir | None:
        return None if self.preferences else self

    @property
    def relevant_label(self) -> float:
        return self.relevant_from

    def fingerprint(self) -> str:
        pairs = [self.preferences, self.pairs_per_query, self.relevant_from] if self.preferences else []
        settings = json.dumps([self.document_format, self.missing_ids, self.split, *pairs])
        return xxhash.xxh3_128_hexdigest((self._parts.content() + settings).encode())

    def corpus(self) -> Iterator[tuple[str, str]]:
        for identity, text, title in self._texts("corpus"):
            yield identity, document_text(self.document_format, title, text)

    def titles(self) -> Iterator[tuple[str, str]]:
        """(id, title) of each document."""
        for identity, _, title in self._texts("corpus"):
            yield identity, title

    def queries(self) -> Iterator[tuple[str, str]]:
        for identity, text, _ in self._texts("queries"):
            yield identity, text

    def _texts(self, part: str) -> Iterator[tuple[str, str, str]]:
        """(id, text, title) of each record of corpus or queries."""
        seen: set[str] = set()
        for place, record in self._parts.records(part):
            where = f"datasets.{self.name}: {place}"
            if not isinstance(record, Mapping):
                raise ValueError(f"{where}: {record}")
            identity, text, title = record.get("_id"), record.get("text"), record.get("title") or ""
            if identity is None or not isinstance(text, str) or not isinstance(title, str):
                raise ValueError(f"{where}: needs _id and a text under text (found: {', '.join(record) or 'nothing'})")
            if str(identity) in seen:
                raise ValueError(f"{where}: the id {str(identity)!r} appears more than once")
            seen.add(str(identity))
            try:
                yield check_id(identity), text, title
            except BadRecord as error:
                raise ValueError(f"{where}: {error}") from error

    def qrels(self) -> dict[str, dict[str, int]]:
        if self.split is None:
            raise ValueError(
                f"datasets.{self.name}.split is null, so there are no judgements; set it to a split such as test"
            )
        qrels = self._parts.qrels()
        queries = {name for name, _ in self.queries()}
        documents = {name for name, _ in self.corpus()}
        strange = [q for q in qrels if q not in queries]
        strange += dict.fromkeys(d for judged in qrels.values() for d in judged if d not in documents)
        if strange and self.missing_ids == "error":
            shown = ", ".join(strange[:10])
            raise ValueError(
                f"datasets.{self.name}: {len(strange)} judged ids are in neither corpus nor queries: {shown}; "
                f"set datasets.{self.name}.missing_ids=drop to exclude them"
            )
        kept = {q: {d: g for d, g in judged.items() if d in documents} for q, judged in qrels.items() if q in queries}
        self.dropped = sum(map(len, qrels.values())) - sum(map(len, kept.values()))
        return {query: judged for query, judged in kept.items() if judged}

    def examples(self) -> Iterator[Example]:
        return as_preferences(self._graded(), self.preferences, self.pairs_per_query, self.name)

    def _graded(self) -> Iterator[Example]:
        texts = dict(self.corpus())
        qrels = self.qrels()
        for query_id, text in self.queries():
            judged = qrels.get(query_id, {})
            if judged:
                yield Example(
                    text,
                    tuple(texts[name] for name in judged),
                    tuple(float(max(0, grade)) for grade in judged.values()),
                    f"{self.name}:{query_id}",
                    relevant=tuple(grade >= self.relevant_from for grade in judged.values()),
                )


def document_text(form: str, title: str, text: str) -> str:
    """`form` with `{title}` and `{text}` replaced, stripped. A title can itself contain the string {text}."""
    values = {"{title}": title, "{text}": text}
    return "".join(values.get(piece, piece) for piece in re.split(r"(\{title\}|\{text\})", form)).strip()


def write_beir(
    path: str | Path,
    corpus: Iterable[tuple[str, str]],
    queries: Iterable[tuple[str, str]],
    qrels: Mapping[str, Mapping[str, int]],
    split: str = "test",
) -> None:
    """Writes a BEIR folder with empty titles. Raises ValueError for a judged id with white space."""
    folder = Path(path)
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    for name, rows in (("corpus", corpus), ("queries", queries)):
        with (folder / f"{name}.jsonl").open("wb") as file:
            for identity, text in rows:
                file.write(orjson.dumps({"_id": identity, "title": "", "text": text}) + b"\n")
    for name in {*qrels, *(document for judged in qrels.values() for document in judged)}:
        if name.split() != [name]:
            raise ValueError(f"{folder}: the id {name!r} is empty or has white space, which qrels cannot hold")
    lines = [f"{query}\t{document}\t{grade}\n" for query, judged in qrels.items() for document, grade in judged.items()]
    (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines), encoding="utf-8")
