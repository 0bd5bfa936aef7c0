"""BEIR folders: corpus.jsonl, queries.jsonl, qrels/<split>.tsv."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson
import xxhash

from rankpo.data.files import content_fingerprint, records
from rankpo.types import Example


@dataclass(kw_only=True)
class Beir:
    """A corpus with graded judgements; as training data, every judged document of a query.

    document_format: `{title}` and `{text}`; the result is stripped. missing_ids: judged ids that corpus or queries
    lack are an `error` (the first ten are named) or left out (`drop`). ignore_identical_ids: a hit whose id equals
    the query's is dropped, as ArguAna and Quora need it.
    Raises FileNotFoundError at construction for a file that is not there.
    """

    name: str
    path: str
    split: str = "test"
    document_format: str = "{title} {text}"
    missing_ids: str = "error"
    ignore_identical_ids: bool = True
    relevant_from: int = 1
    gain: str = "linear"
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.missing_ids not in ("error", "drop"):
            raise ValueError(f"missing_ids must be one of error, drop, got {self.missing_ids!r}")
        folder = Path(self.path)
        self._files = [folder / "corpus.jsonl", folder / "queries.jsonl", folder / "qrels" / f"{self.split}.tsv"]
        for file in self._files:
            if not file.exists():
                raise FileNotFoundError(f"datasets.{self.name}.path: {file} does not exist")

    def fingerprint(self) -> str:
        settings = f"{self.document_format}|{self.missing_ids}|{self.split}"
        return xxhash.xxh3_128_hexdigest((content_fingerprint(self._files) + settings).encode())

    def corpus(self) -> Iterator[tuple[str, str]]:
        for place, record in records(self._files[0]):
            if not isinstance(record, Mapping) or "_id" not in record or "text" not in record:
                raise ValueError(f"datasets.{self.name}: {place}: a document needs _id and text, got {record}")
            text = self.document_format.replace("{title}", record.get("title") or "").replace("{text}", record["text"])
            yield str(record["_id"]), text.strip()

    def queries(self) -> Iterator[tuple[str, str]]:
        for place, record in records(self._files[1]):
            if not isinstance(record, Mapping) or "_id" not in record or "text" not in record:
                raise ValueError(f"datasets.{self.name}: {place}: a query needs _id and text, got {record}")
            yield str(record["_id"]), record["text"]

    def qrels(self) -> dict[str, dict[str, int]]:
        from rankpo.retrieval.trec import read_qrels

        qrels = read_qrels(self._files[2])
        queries = {name for name, _ in self.queries()}
        documents = {name for name, _ in self.corpus()}
        strange = [q for q in qrels if q not in queries]
        strange += [d for judged in qrels.values() for d in judged if d not in documents]
        if strange and self.missing_ids == "error":
            shown = ", ".join(strange[:10])
            raise ValueError(
                f"datasets.{self.name}: {len(strange)} judged ids are in neither corpus nor queries: {shown}; "
                f"set datasets.{self.name}.missing_ids=drop to leave them out"
            )
        kept = {q: {d: g for d, g in judged.items() if d in documents} for q, judged in qrels.items() if q in queries}
        return {query: judged for query, judged in kept.items() if judged}

    def examples(self) -> Iterator[Example]:
        texts = dict(self.corpus())
        qrels = self.qrels()
        for query_id, text in self.queries():
            judged = qrels.get(query_id, {})
            if judged:
                relevance = tuple(float(max(0, grade)) for grade in judged.values())
                yield Example(text, tuple(texts[name] for name in judged), relevance, f"{self.name}:{query_id}")


def write_beir(
    path: str | Path,
    corpus: Iterable[tuple[str, str]],
    queries: Iterable[tuple[str, str]],
    qrels: Mapping[str, Mapping[str, int]],
    split: str = "test",
) -> None:
    """Writes a BEIR folder; titles are left empty."""
    folder = Path(path)
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    for name, rows in (("corpus", corpus), ("queries", queries)):
        with (folder / f"{name}.jsonl").open("wb") as file:
            for identity, text in rows:
                file.write(orjson.dumps({"_id": identity, "title": "", "text": text}) + b"\n")
    lines = [f"{query}\t{document}\t{grade}\n" for query, judged in qrels.items() for document, grade in judged.items()]
    (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
