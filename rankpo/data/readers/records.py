"""Datasets from files: `_target_` of most yaml files in config/datasets."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

import xxhash

from rankpo.data.readers import fields, files, formats
from rankpo.data.readers.fields import BadRecord, FieldMap, Options, extract, normal
from rankpo.data.readers.formats import Parsed
from rankpo.data.relevance import binary
from rankpo.data.shape import Declares
from rankpo.types import Example

MAX_SHOWN = 20
OPTIONAL_ROLES = ("negatives", "confidence_score", "pos_scores", "neg_scores")  # a record may lack them, all may not
NO_SETTINGS = ("files", "_corpus_files", "_corpus_keys", "_found", "report", "path", "corpus", "weight")
MAX_PLACES = 3  # of what is kept but worth a look


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
class PassReport:
    """What a pass over a dataset met, where nothing else would say so.

    rows: records used. filtered: by `where` or `min_confidence`. merged: equal candidates of one example. conflicts:
    of those, one relevant and the other not. places: of bad records, `dataset: file:line: why`. labels: the smallest
    and the largest label of records that have labels in place of lists, in the units of the file. unused: fields that
    nothing reads.
    """

    formats: list[str] = field(default_factory=list)
    rows: int = 0
    filtered: int = 0
    merged: int = 0
    merged_places: list[str] = field(default_factory=list)
    conflicts: int = 0
    conflict_places: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    labels: list[float] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def summary(self) -> str:
        parts = [f"{self.rows} rows ({', '.join(self.formats) or 'no format'})"]
        for count, what, where in (
            (self.filtered, "filtered", []),
            (self.merged, "equal candidates merged", self.merged_places),
            (self.conflicts, "both positive and negative", self.conflict_places),
            (len(self.places), "bad records skipped", []),
        ):
            if count:
                parts.append(f"{count} {what}{f' (first: {where[0]})' if where else ''}")
        return ", ".join(parts)


@dataclass(kw_only=True)
class Records(FieldMap, Declares):
    """Records of files in one of the formats of `formats.py`, told apart by their keys unless `format` says.

    The roles of `FieldMap` say where a file keeps what under other names. min_confidence: 0 to 100, of preferences.
    min_label, max_label: the range that labels are scaled from, to 0 to 1; max_label alone counts from 0. relevant_from:
    the smallest label of the file that is relevant, for records with labels in place of lists of positives and
    negatives; None asks for it where it matters.
    corpus: the file whose lines (from 0) `positives.index` of raw records name; text and line must agree.
    where: path -> allowed values. limit: the first so many examples. on_bad_record: `error` collects up to twenty and
    raises BadRecords once, `skip` leaves them out and lists them in `report`. conflicts: a text that is both positive
    and negative of its query stays as the positive (`merge`, counted), or is an `error`.
    Raises FileNotFoundError at construction for a path that is not there.
    """

    name: str
    path: str | Sequence[str]
    format: str = "auto"
    min_label: float | None = None
    max_label: float | None = None
    relevant_from: float | None = None
    scores_are: str = "relevance"
    corpus: str | None = None
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
        if self.min_label is None and self.max_label is not None:
            self.min_label = 0.0
        if self.min_label is not None and (self.max_label is None or not self.max_label > self.min_label):
            raise ValueError(f"max_label must be > min_label, got {self.min_label} and {self.max_label}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be >= 1 or null, got {self.limit}")
        if not self.weight >= 0:
            raise ValueError(f"weight must be >= 0, got {self.weight}")
        for key, values in (self.where or {}).items():
            if not isinstance(values, list | tuple):
                raise ValueError(f"where.{key} must be a list of allowed values, got {values!r}")
        self.files = files.find(self.path, "path")
        self._corpus_files = files.find(self.corpus, "corpus") if self.corpus is not None else []
        self.report = PassReport()
        self._found: set[str] = set()  # roles of the field map that the current pass has met

    @property
    def label_scale(self) -> float:
        return 1.0 if self.min_label is None or self.max_label is None else self.max_label - self.min_label

    @property
    def relevant_label(self) -> float | None:
        return None if self.relevant_from is None else self.relevant_from - (self.min_label or 0.0)

    def fingerprint(self) -> str:
        settings = {name: value for name, value in self.__dict__.items() if name not in NO_SETTINGS}
        content = files.content_fingerprint([*self.files, *self._corpus_files])
        return xxhash.xxh3_128_hexdigest(json.dumps([content, settings], sort_keys=True, default=str).encode())

    def examples(self) -> Iterator[Example]:
        """Streams the examples. Raises BadRecords at the end of the bad ones, or after twenty; ValueError if none is left."""
        self.report = PassReport()
        self._found.clear()
        count = 0
        for example in islice(chain.from_iterable(map(self._of_file, self.files)), self.limit):
            count += 1
            yield example
        self._complain()
        if not count:
            raise ValueError(f"datasets.{self.name}: no example is left: {self.report.summary()}")
        if self.limit is None:
            self._complain_of_map()

    def _complain_of_map(self) -> None:
        """Raises ValueError for an optional role of the field map that no record had: a typo, which would train on less."""
        for role in OPTIONAL_ROLES:
            spec = getattr(self, role)
            if spec is not None and role not in self._found:
                kinds = ", ".join(self.report.formats)
                raise ValueError(
                    f"datasets.{self.name}.{role}={spec}: no record has it, or its format ({kinds}) has no {role}"
                )

    def _options(self) -> Options:
        key = f"datasets.{self.name}"
        range_ = self.min_label, self.max_label
        return Options(
            self.mapped(), *range_, self.scores_are, key, self.relevant_from, self._found, self.report.labels
        )

    def _of_file(self, path: Path) -> Iterator[Example]:
        chosen = self.format
        options = self._options()
        good = self._good(path)
        for place, record in good:
            try:
                if chosen == "auto":
                    chosen = formats.detect(record, options.fields)
                if chosen not in self.report.formats:
                    self.report.formats.append(chosen)
                if chosen == "flat":
                    yield from self._flat(chain([(place, record)], good), options)
                    return
                parsed = formats.FORMATS[chosen](record, options)
                if self._corpus_files:
                    self._check_index(record, parsed)
                if self._confident(parsed):
                    yield self._example(parsed, record, place)
            except BadRecord as error:
                self._bad(place, error, last=chosen == "auto")

    def _good(self, path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The records of a file that `where` lets through; what is no record is noted as bad."""
        for place, record in files.records(path):
            if isinstance(record, files.NotARecord):
                self._bad(place, record)
            elif all(extract(record, key) in allowed for key, allowed in (self.where or {}).items()):
                yield place, record
            else:
                self.report.filtered += 1

    def _flat(self, good: Iterable[tuple[str, Mapping[str, Any]]], options: Options) -> Iterator[Example]:
        """Lines of equal query, also where they are not adjacent, as one example each."""
        groups: dict[str, tuple[str, Mapping[str, Any], list[tuple[str, float]]]] = {}
        for place, record in good:
            try:
                query = fields.text(options.get(record, "query"), "query")
                pair = formats.labelled_text(record, options)
            except BadRecord as error:
                self._bad(place, error)
                continue
            groups.setdefault(query, (place, record, []))[2].append(pair)
        for query, (place, first, pairs) in groups.items():
            try:
                record = first if self.id else {}  # a line's own id is its candidate's
                yield self._example(formats.labelled(query, pairs, options), record, place)
                self.report.rows += len(pairs) - 1
            except BadRecord as error:
                self._bad(place, error)

    def _check_index(self, record: Mapping[str, Any], parsed: Parsed) -> None:
        """Each `positives.index` must name the line of the corpus that holds its text."""
        indices = extract(record, "positives.index")
        if indices is None:
            raise BadRecord(f"no positives.index, which datasets.{self.name}.corpus is there to check")
        for number, (index, text) in enumerate(zip(indices, parsed.candidates, strict=False)):
            if not isinstance(index, int) or not 0 <= index < len(self._corpus_keys):
                raise BadRecord(f"positives.index[{number}] is {index}; the corpus has {len(self._corpus_keys)} lines")
            if self._corpus_keys[index] != xxhash.xxh3_64_intdigest(normal(text).encode()):
                raise BadRecord(f"positives.index[{number}] is {index}, but that line of the corpus is another text")

    @cached_property
    def _corpus_keys(self) -> list[int]:
        """xxh3-64 of the normalised text of each line of the corpus."""
        keys = []
        for path in self._corpus_files:
            for place, record in files.records(path):
                text = record.get("text") if isinstance(record, Mapping) else None
                if not isinstance(text, str):
                    raise BadRecords(f"datasets.{self.name}.corpus: {place}: no text under 'text'")
                keys.append(xxhash.xxh3_64_intdigest(normal(text).encode()))
        return keys

    def _confident(self, parsed: Parsed) -> bool:
        if not self.min_confidence:
            return True
        if parsed.confidence is None:
            raise BadRecord(f"no confidence_score, which datasets.{self.name}.min_confidence needs")
        enough = parsed.confidence >= self.min_confidence / 100
        self.report.filtered += not enough
        return enough

    def _example(self, parsed: Parsed, record: Mapping[str, Any], place: str) -> Example:
        kept = self._distinct(parsed, place)
        name = extract(record, self.id or "id")
        self.report.rows += 1

        def taken(values: Sequence[Any] | None) -> tuple[Any, ...] | None:
            return None if values is None else tuple(values[index] for index in kept)

        return Example(
            query=parsed.query,
            candidates=tuple(parsed.candidates[index] for index in kept),
            relevance=tuple(parsed.relevance[index] for index in kept),
            id=str(name) if name is not None else f"{self.name}:{place}",
            teacher=taken(parsed.teacher),
            confidence=parsed.confidence,
            source=place,
            relevant=taken(parsed.relevant),
            grades=taken(parsed.grades),
        )

    def _distinct(self, parsed: Parsed, place: str) -> list[int]:
        """Numbers of the candidates that stay: of equal texts one, a positive before others, then the larger label."""
        query = normal(parsed.query)
        stays: dict[str, int] = {}
        for index, candidate in enumerate(parsed.candidates):
            key = normal(candidate)
            if key == query:
                raise BadRecord("a candidate is equal to the query")
            known = stays.setdefault(key, index)
            if known != index:
                self._note_merge(parsed, known, index, place)
                if parsed.relevance[index] > parsed.relevance[known]:
                    stays[key] = index
        return list(stays.values())

    def _note_merge(self, parsed: Parsed, first: int, second: int, place: str) -> None:
        """An equal candidate stands once, with the larger relevance; one that is relevant and irrelevant is a conflict."""
        values = [parsed.relevance[first], parsed.relevance[second]]
        known = [value == 1 for value in values] if binary(values) else [True, True]
        if parsed.relevant is not None:
            known = [parsed.relevant[first], parsed.relevant[second]]
        if known[0] != known[1]:
            if self.conflicts == "error":
                raise BadRecord("a candidate is both positive and negative; set conflicts=merge to keep the positive")
            self.report.conflicts += 1
            self.report.conflict_places = [*self.report.conflict_places, place][:MAX_PLACES]
        self.report.merged += 1
        self.report.merged_places = [*self.report.merged_places, place][:MAX_PLACES]

    def _bad(self, place: str, error: ValueError, last: bool = False) -> None:
        """Notes a bad record. last: the next ones would say the same, so an error is raised at once."""
        self.report.places.append(f"datasets.{self.name}: {place}: {error}")
        if self.on_bad_record == "error" and (last or len(self.report.places) >= MAX_SHOWN):
            self._complain()

    def _complain(self) -> None:
        if self.report.places and self.on_bad_record == "error":
            more = "" if len(self.report.places) < MAX_SHOWN else "\n(only the first twenty are shown)"
            raise BadRecords("\n".join(self.report.places) + more)
