"""Parts of a judged collection (corpus, queries, judgements) in the layouts that tools publish them in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from rankpo.data.readers.files import content_fingerprint, records
from rankpo.data.readers.hub_source import HubSource, parts_of
from rankpo.data.readers.trec import read_qrels, whole_grade

Qrels = dict[str, dict[str, int]]
QRELS = ("qrels", "default")  # Names of the part of judgements on the hub.
SPLITS = ("train", "test")  # Of texts: those that repositories of one split have.


class Parts(Protocol):
    """records: (place, record) of the part `corpus` or `queries`, with `_id`, `text` and perhaps `title`."""

    def records(self, part: str) -> Iterator[tuple[str, object]]: ...
    def qrels(self) -> Qrels: ...
    def content(self) -> str: ...


class FolderParts:
    """A BEIR folder: corpus.jsonl, queries.jsonl, qrels/<split>.tsv. split None: it is read without judgements.

    Raises FileNotFoundError at construction for a file that is not there.
    """

    def __init__(self, folder: Path, split: str | None) -> None:
        self.files = {part: folder / f"{part}.jsonl" for part in ("corpus", "queries")}
        if split is not None:
            self.files["qrels"] = folder / "qrels" / f"{split}.tsv"
        for file in self.files.values():
            if not file.exists():
                raise FileNotFoundError(f"path: {file} does not exist")

    def records(self, part: str) -> Iterator[tuple[str, object]]:
        return records(self.files[part])

    def qrels(self) -> Qrels:
        return read_qrels(self.files["qrels"])

    def content(self) -> str:
        return content_fingerprint(list(self.files.values()))


@dataclass(frozen=True, kw_only=True)
class HubParts:
    """A collection as a dataset of the hub, or a folder with a copy of it: configs of corpus, queries and judgements.

    name: BeIR's, MTEB's or NanoBEIR's repository. split: of the judgements; the texts have a split of their part's
    name, of this name, or one for all. config: what stands before the names of the parts where a repository holds
    several collections (`en` of `en-corpus`). qrels_name: the repository of the judgements where it is another one.
    key: for messages. Raises ValueError where a part is missing.
    """

    name: str
    key: str
    split: str
    config: str | None = None
    qrels_name: str | None = None
    revision: str | None = None
    _sources: dict[str, HubSource] = field(default_factory=dict)

    def _source(self, part: str) -> HubSource:
        """The source of corpus, queries or qrels, looked up once."""
        if part not in self._sources:
            name = self.qrels_name if part == "qrels" and self.qrels_name is not None else self.name
            layout = parts_of(name, self.revision, self.key)
            config = self._config(part, list(layout))
            split = self._split(part, layout[config])
            self._sources[part] = HubSource(name=name, key=self.key, config=config, split=split, revision=self.revision)
        return self._sources[part]

    def _config(self, part: str, configs: list[str]) -> str:
        names = QRELS if part == "qrels" else (part,)
        before = "" if self.config is None else f"{self.config}-"
        found = [f"{before}{name}" for name in (*names, *([self.config] if part == "qrels" else []))]
        chosen = next((name for name in found if name in configs), None)
        if chosen is None:
            raise ValueError(f"{self.key}: {self.name} has no config {found[0]} (found: {', '.join(configs)})")
        return chosen

    def _split(self, part: str, splits: list[str]) -> str:
        wanted = [self.split] if part == "qrels" else [self.split, part, *SPLITS]
        chosen = next((name for name in wanted if name in splits), splits[0] if len(splits) == 1 else None)
        if chosen is None or (part == "qrels" and chosen != self.split):
            raise ValueError(
                f"{self.key}.split={self.split}: the {part} of {self.name} have no such split (found: "
                f"{', '.join(splits)}); set {self.key}.split"
            )
        return chosen

    def records(self, part: str) -> Iterator[tuple[str, object]]:
        source = self._source(part)
        for place, record in source.records(source.place):
            assert isinstance(record, Mapping)
            yield place, record if "_id" in record else {**record, "_id": record.get("id")}

    def qrels(self) -> Qrels:
        """Judgements of every query; without scores they are 1. A cell may list several documents."""
        source = self._source("qrels")
        found: Qrels = {}
        for place, record in source.records(source.place):
            assert isinstance(record, Mapping)
            query, document = record.get("query-id"), record.get("corpus-id")
            if query is None or document is None:
                raise ValueError(f"{place}: judgements need query-id and corpus-id (found: {', '.join(record)})")
            grade = 1 if record.get("score") is None else whole_grade(record["score"], place)
            for name in document if isinstance(document, list) else [document]:
                found.setdefault(str(query), {})[str(name)] = grade
        return found

    def content(self) -> str:
        return "-".join(self._source(part).content([]) for part in ("corpus", "queries", "qrels"))
