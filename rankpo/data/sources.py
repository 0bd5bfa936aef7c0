"""Datasets from files: `_target_` of most yaml files in config/datasets."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import xxhash

from rankpo.data import files, formats
from rankpo.data.formats import BadRecord, Options, Parsed
from rankpo.types import Example

MAX_SHOWN = 20
ROLES = [
    "query",
    "positives",
    "negatives",
    "candidates",
    "relevance",
    "passage1",
    "passage2",
    "preferred",
    "confidence_score",
    "pos_scores",
    "neg_scores",
    "hits",
    "content",
    "label",
    "id",
]


class EvaluationSet(Protocol):
    """A corpus with graded judgements."""

    name: str
    ignore_identical_ids: bool
    relevant_from: int
    gain: str

    def fingerprint(self) -> str: ...
    def corpus(self) -> Iterator[tuple[str, str]]: ...
    def queries(self) -> Iterator[tuple[str, str]]: ...
    def qrels(self) -> dict[str, dict[str, int]]: ...


class BadRecords(ValueError):
    """Up to twenty bad records, one line each."""


@dataclass
class DataReport:
    """What a pass over a dataset met. places: of bad records, `file:line: why`."""

    format: str = ""
    rows: int = 0
    filtered: int = 0
    merged: int = 0
    conflicts: int = 0
    places: list[str] = field(default_factory=list)

    def summary(self) -> str:
        parts = [f"{self.rows} rows ({self.format})"]
        for count, what in (
            (self.filtered, "filtered"),
            (self.merged, "equal candidates merged"),
            (self.conflicts, "both positive and negative"),
            (len(self.places), "bad records skipped"),
        ):
            if count:
                parts.append(f"{count} {what}")
        return ", ".join(parts)


@dataclass(kw_only=True)
class Records:
    """Records of files in one of the formats of `formats.py`, told apart by their keys unless `format` says.

    fields: role -> key, path or list of paths, where a file has other names. min_confidence: 0 to 100, of
    preferences. where: field -> allowed values. limit: the first so many. on_bad_record: `error` collects up to
    twenty and raises BadRecords once, `skip` leaves them out and lists them in `report`. conflicts: a text that is
    both positive and negative of its query stays as the positive (`merge`, counted), or is an `error`.
    Raises FileNotFoundError at construction for a path that is not there.
    """

    name: str
    path: str | Sequence[str]
    format: str = "auto"
    fields: Mapping[str, Any] = field(default_factory=dict)
    min_label: float | None = None
    max_label: float | None = None
    scores_are: str = "relevance"
    min_confidence: float = 0
    where: Mapping[str, Sequence[Any]] | None = None
    limit: int | None = None
    weight: float = 1.0
    on_bad_record: str = "error"
    conflicts: str = "merge"

    def __post_init__(self) -> None:
        for key, allowed in (
            ("format", ("auto", *formats.FORMATS)),
            ("on_bad_record", ("error", "skip")),
            ("conflicts", ("merge", "error")),
            ("scores_are", ("relevance", "teacher")),
        ):
            if getattr(self, key) not in allowed:
                raise ValueError(f"{key} must be one of {', '.join(allowed)}, got {getattr(self, key)!r}")
        if not 0 <= self.min_confidence <= 100:
            raise ValueError(f"min_confidence must be in 0 to 100, got {self.min_confidence}")
        if (self.min_label is None) != (self.max_label is None) or (
            self.min_label is not None and self.max_label is not None and not self.max_label > self.min_label
        ):
            raise ValueError(f"max_label must be > min_label, got {self.min_label} and {self.max_label}")
        strange = sorted(set(self.fields) - set(ROLES))
        if strange:
            raise ValueError(f"fields has no role {', '.join(strange)}; roles: {', '.join(ROLES)}")
        self.files = files.find(self.path, f"datasets.{self.name}.path")
        self.report = DataReport()

    def fingerprint(self) -> str:
        settings = {
            name: value for name, value in self.__dict__.items() if name not in ("files", "report", "path", "weight")
        }
        content = files.content_fingerprint(self.files)
        return xxhash.xxh3_128_hexdigest(json.dumps([content, settings], sort_keys=True, default=str).encode())

    def examples(self) -> Iterator[Example]:
        """Streams the examples. Raises BadRecords at the end of the bad ones, or after twenty."""
        self.report = DataReport()
        taken = 0
        for path in self.files:
            for example in self._of_file(path):
                if self.limit is not None and taken >= self.limit:
                    return
                taken += 1
                yield example
        self._complain()

    def _of_file(self, path: Path) -> Iterator[Example]:
        chosen = self.format
        options = Options(self.fields, self.min_label, self.max_label, self.scores_are)
        source = files.records(path)
        for number, (place, record) in enumerate(source):
            try:
                if isinstance(record, files.NotARecord):
                    raise BadRecord(str(record))
                if chosen == "auto":
                    chosen = formats.detect(record, self.fields)
                if number == 0 and chosen == "flat":
                    yield from self._flat(path, options)
                    return
                self.report.format = chosen
                if self._filtered(record):
                    continue
                example = self._example(formats.FORMATS[chosen](record, options), record, place)
            except BadRecord as error:
                self._bad(place, error)
                continue
            self.report.rows += 1
            yield example

    def _flat(self, path: Path, options: Options) -> Iterator[Example]:
        """Lines of equal query, also where they are not adjacent, as one example each."""
        self.report.format = "flat"
        groups: dict[str, tuple[str, list[Any]]] = {}
        for place, record in files.records(path):
            try:
                if isinstance(record, files.NotARecord):
                    raise BadRecord(str(record))
                query = formats.text(options.get(record, "query"), "query")
                formats.grouped({"query": query, "hits": [record]}, replace(options, fields=self._inner_fields()))
            except BadRecord as error:
                self._bad(place, error)
                continue
            groups.setdefault(query, (place, []))[1].append(record)
        for query, (place, hits) in groups.items():
            record = {"query": query, "hits": hits}
            self.report.rows += len(hits)
            yield self._example(formats.grouped(record, replace(options, fields=self._inner_fields())), record, place)

    def _inner_fields(self) -> dict[str, Any]:
        return {role: self.fields[role] for role in ("content", "label") if role in self.fields}

    def _filtered(self, record: Mapping[str, Any]) -> bool:
        hidden = any(formats.extract(record, key) not in allowed for key, allowed in (self.where or {}).items())
        confidence = record.get("confidence_score")
        if self.min_confidence and isinstance(confidence, int | float):
            hidden = hidden or confidence < self.min_confidence
        self.report.filtered += hidden
        return hidden

    def _example(self, parsed: Parsed, record: Mapping[str, Any], place: str) -> Example:
        candidates: dict[str, int] = {}
        relevance: list[float] = []
        texts: list[str] = []
        teacher: list[float] = []
        for index, candidate in enumerate(parsed.candidates):
            key = normal(candidate)
            value = parsed.relevance[index]
            if key in candidates:
                self._merge(candidates[key], value, relevance)
                continue
            candidates[key] = len(texts)
            texts.append(candidate)
            relevance.append(value)
            teacher.append(parsed.teacher[index] if parsed.teacher else 0.0)
        name = formats.extract(record, self.fields["id"]) if "id" in self.fields else record.get("id")
        return Example(
            query=parsed.query,
            candidates=tuple(texts),
            relevance=tuple(relevance),
            id=str(name) if name is not None else f"{self.name}:{place}",
            teacher=tuple(teacher) if parsed.teacher else None,
            confidence=parsed.confidence,
            source=place,
        )

    def _merge(self, first: int, value: float, relevance: list[float]) -> None:
        """An equal candidate stands once, with the larger relevance; unequal labels are a conflict and counted."""
        self.report.merged += 1
        if (relevance[first] > 0) != (value > 0):
            self.report.conflicts += 1
            if self.conflicts == "error":
                raise BadRecord("a candidate is both positive and negative; set conflicts=merge to keep the positive")
        relevance[first] = max(relevance[first], value)

    def _bad(self, place: str, error: BadRecord) -> None:
        self.report.places.append(f"datasets.{self.name}: {place}: {error}")
        if self.on_bad_record == "error" and len(self.report.places) >= MAX_SHOWN:
            self._complain()

    def _complain(self) -> None:
        if self.report.places and self.on_bad_record == "error":
            more = "" if len(self.report.places) < MAX_SHOWN else "\n(only the first twenty are shown)"
            raise BadRecords("\n".join(self.report.places) + more)


def normal(text: str) -> str:
    """A text as it is compared: NFC, white space collapsed."""
    return " ".join(unicodedata.normalize("NFC", text).split())
