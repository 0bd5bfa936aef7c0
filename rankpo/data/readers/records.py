"""Datasets from files or from the hub, the `_target_` of most yaml files in config/datasets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import xxhash

from rankpo.data.grade_pairs import as_preferences
from rankpo.data.readers import files, formats, layouts
from rankpo.data.readers.corpus_lines import CorpusLines
from rankpo.data.readers.examples import example_of, sees_own_negatives_alone
from rankpo.data.readers.fields import BadRecord, FieldMap, Options, check_id, extract
from rankpo.data.readers.json_records import envelope
from rankpo.data.readers.line_groups import Line, LineGroups
from rankpo.data.readers.parsed import Parsed, labelled
from rankpo.data.readers.passes import MAX_SHOWN, BadRecords, PassReport
from rankpo.data.readers.record_keys import NO_SETTINGS, OF_PREFERENCES, RecordKeys
from rankpo.data.readers.sources import source_of
from rankpo.data.readers.texts import TextsById, corpus_beside, nemo_corpora
from rankpo.data.shape import Declares
from rankpo.types import Example

# Single records can lack these roles, but not all records.
OPTIONAL_ROLES = ("negatives", "confidence_score", "pos_scores", "neg_scores", "prompt")
BY_ID = ("ids", "nemo")  # Formats that refer to documents by id.
ID_NAMES = {  # Names of the id field other than `id`. A line with one text has the id of the candidate, not of the query.
    "flat": (),
    "ids": ("query_id", "id"),
    "tevatron": ("query_id", "id"),
    "nemo": ("question_id", "id"),
    "labeled_list": ("id", "query_id"),
    "ordered": ("id", "query_id"),
}
SYMMETRIC = ("symmetric_sts", "symmetric_clustering")  # FlagEmbedding's types whose passages get the query's prompt.
TYPES = ("normal", "only_1neg", "symmetric_class", *SYMMETRIC)
VERSION = 3  # raise it with any change of what a record becomes


@dataclass(kw_only=True)
class Records(FieldMap, RecordKeys, Declares):
    """Records of files or of a hub dataset, in a format of `formats.py`, detected by their keys if `format` is None.

    path: files, folders, globs or addresses. With None, `name` is the id of a hub dataset or a folder, and `alias` is the
    prefix of metrics. streaming: reads the data without a copy on disk and shuffles it in windows.

    The roles of `FieldMap` map other field names of a file.
    min_confidence: the lowest confidence of a preference, from 0 to 100.
    min_label, max_label: labels in this range are scaled to 0 to 1; min_label defaults to 0 if max_label is set.
    relevant_from: the smallest relevant label of the file, for records with labels in place of lists of positives and
    negatives. If None, losses that need it raise an error.
    corpus: the file or folder of the documents that records refer to by id; None looks in the folder of the records.
    For raw records, `positives.index` is a line number (from 0) of the corpus, and the texts must be equal.
    quoted_tsv: whether cells of TSV files are quoted like those of CSV.
    preferences: `grades` makes preference pairs of relevant candidates with different labels, see `grade_pairs.py`.
    where: maps paths to allowed values. limit: the number of examples to read; None reads all.
    on_bad_record: `error` collects up to twenty bad records and raises BadRecords; `skip` excludes them and lists them in
    `report`. conflicts: a text that is both positive and negative for its query is kept as positive (`merge`, counted),
    or is a bad record (`error`).
    Raises FileNotFoundError at construction for a missing path.
    """

    def __post_init__(self) -> None:
        self.check()
        if self.path is None and self.hub is None:  # A copy of a dataset has these values already.
            self.hub, self.name = self.name, self.alias or self.name.rstrip("/").rpartition("/")[2]
        self._source = source_of(self)
        self.files = self._source.files
        self._corpus_files = files.find(self.corpus, "corpus") if self.corpus is not None else []
        self._lines = CorpusLines(self._corpus_files, f"datasets.{self.name}")
        self.report = PassReport()
        self._found: set[str] = set()  # Roles of the field map that some record of this pass had.
        self._used: set[str] = set()  # Keys of records that this pass has read.
        self._texts: dict[tuple[Path, ...], TextsById] = {}

    @property
    def label_scale(self) -> float:
        return 1.0 if self.min_label is None or self.max_label is None else self.max_label - self.min_label

    @property
    def relevant_label(self) -> float | None:
        return None if self.relevant_from is None else self.relevant_from - (self.min_label or 0.0)

    def fingerprint(self) -> str:
        unused = NO_SETTINGS if self.preferences else {*NO_SETTINGS, *OF_PREFERENCES}
        settings = {name: value for name, value in self.__dict__.items() if name not in unused}
        corpora = dict.fromkeys(chain.from_iterable(self._corpora(path, self._format_of(path)) for path in self.files))
        content = self._source.content([*self._corpus_files, *corpora])
        whole = [VERSION, content, settings, [sees_own_negatives_alone(path) for path in self.files]]
        return xxhash.xxh3_128_hexdigest(json.dumps(whole, sort_keys=True, default=str).encode())

    def examples(self) -> Iterator[Example]:
        """Streams the examples. Raises BadRecords at the end, or after twenty bad records; ValueError without examples."""
        self.report = PassReport()
        self._found.clear()
        self._used.clear()
        count = 0
        found = islice(chain.from_iterable(map(self._of_file, self.files)), self.limit)
        for example in as_preferences(found, self.preferences, self.pairs_per_query, self.name):
            count += 1
            yield example
        self.report.name_unused(self._used)
        self._complain()
        if not count:
            raise ValueError(f"datasets.{self.name}: no example is left: {self.report.summary()}")
        if self.limit is None:
            self._complain_of_map()

    def _complain_of_map(self) -> None:
        """Raises ValueError for an optional role of the field map that no record had, which is probably a typo."""
        for role in OPTIONAL_ROLES:
            spec = self.mapped().get(role)
            if spec is not None and role not in self._found:
                kinds = ", ".join(self.report.formats)
                raise ValueError(
                    f"datasets.{self.name}.{role}={spec}: no record has it, or its format ({kinds}) has no {role}"
                )

    def _options(self) -> Options:
        return Options(
            fields=self.mapped(),
            min_label=self.min_label,
            max_label=self.max_label,
            scores_are=self.scores_are,
            key=f"datasets.{self.name}",
            relevant_from=self.relevant_from,
            found=self._found,
            labels=self.report.labels,
            used=self._used,
        )

    def _format_of(self, path: Path) -> str | None:
        """The format of a file by its first record, or None if no format matches."""
        if self.format != "auto":
            return self.format
        first = next((record for _, record in self._source.records(path)), None)
        try:
            return formats.detect(first, self.mapped()) if isinstance(first, Mapping) else None
        except BadRecord:
            return None

    def _corpora(self, path: Path, form: str | None) -> list[Path]:
        """The files of the corpus for a file whose records refer to documents by id; [] for other formats."""
        if form not in BY_ID or self._corpus_files or not self._source.has_neighbours:
            return self._corpus_files if form in BY_ID else []
        if form == "nemo":
            found = envelope(path) if files.kind(path) == ".json" else {}
            return nemo_corpora(path, found) if "corpus" in found else []
        beside = corpus_beside(path)
        return [] if beside is None else files.find(str(beside), "corpus")

    def _lookup(self, path: Path, form: str) -> Callable[[str], str | None] | None:
        paths = tuple(self._corpora(path, form))
        if not paths:
            return None
        if paths not in self._texts:
            try:
                self._texts[paths] = TextsById(paths)
            except ValueError as error:
                raise BadRecords(f"datasets.{self.name}.corpus: {error}") from error
        return self._texts[paths].get

    def _settled(self, path: Path, form: str, first: Mapping[str, object], options: Options) -> Options:
        """The options of a file, given its format."""
        if form not in self.report.formats:
            self.report.formats.append(form)
        if form == "ordered":
            options = replace(options, order=layouts.order_of(first))
            self.report.order = layouts.described(*options.order)
        return replace(options, lookup=self._lookup(path, form))

    def _of_file(self, path: Path) -> Iterator[Example]:
        form = self.format
        options = self._options()
        settled = False
        good = self._good(path)
        for place, record in good:
            try:
                if form == "auto":
                    form = formats.detect(record, options.fields)
                if not settled:
                    options, settled = self._settled(path, form, record, options), True
                if form == "flat" or (form == "ordered" and layouts.is_flat(record)):
                    yield from self._flat(chain([(place, record)], good), options, path)
                    return
                parsed = formats.FORMATS[form](record, options)
                if form == "contrastive_raw" and self._corpus_files:
                    self._lines.check(record, parsed)
                if self._confident(parsed):
                    yield self._example(parsed, self._extras(path, form, record, place, options))
            except BadRecord as error:
                self._bad(place, error, last=form == "auto")

    def _good(self, path: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
        """The records of a file that satisfy `where`. Invalid records are counted as bad."""
        self._used.update(key.partition(".")[0] for key in self.where or {})
        for place, record in self._source.records(path):
            if not isinstance(record, Mapping):
                self._bad(place, files.NotARecord(str(record)))
            elif all(extract(record, key) in allowed for key, allowed in (self.where or {}).items()):
                self.report.note_fields(record)
                yield place, record
            else:
                self.report.filtered += 1

    def _flat(
        self, good: Iterable[tuple[str, Mapping[str, object]]], options: Options, path: Path
    ) -> Iterator[Example]:
        """Merges lines with the same query, adjacent or not, into one example each."""
        with LineGroups() as groups:
            for place, record in good:
                try:
                    query, (text, label) = formats.labelled_line(record, options)
                    groups.add(Line(place, query, text, label, record))
                except BadRecord as error:
                    self._bad(place, error)
            for first, pairs in groups:
                try:
                    extras = self._extras(path, "flat", first.record, first.place, options)
                    yield self._example(labelled(first.query, pairs, options), extras)
                    self.report.rows += len(pairs) - 1
                except BadRecord as error:
                    self._bad(first.place, error)

    def _extras(
        self, path: Path, form: str, record: Mapping[str, object], place: str, options: Options
    ) -> dict[str, object]:
        """The other fields of a record: its id and prompt, and FlagEmbedding's type and suffix of names."""
        names = [self.id] if self.id else ID_NAMES.get(form, ("id",))
        options.use(*names)
        name = next((value for key in names if (value := extract(record, key)) is not None), None)
        extras: dict[str, object] = {
            "id": f"{self.name}:{'_'.join(place.split())}" if name is None else check_id(name),
            "source": place,
            "query_prompt": options.prompt(record),
            "own_negatives": sees_own_negatives_alone(path),
        }
        if form == "pos_neg" and record.get("type") in TYPES:
            options.use("type")
            extras["symmetric"] = record["type"] in SYMMETRIC
            extras["max_negatives"] = 1 if record["type"] == "only_1neg" else None
        return extras

    def _confident(self, parsed: Parsed) -> bool:
        if not self.min_confidence:
            return True
        if parsed.confidence is None:
            raise BadRecord(f"no confidence_score, which datasets.{self.name}.min_confidence needs")
        enough = parsed.confidence >= self.min_confidence / 100
        self.report.filtered += not enough
        return enough

    def _example(self, parsed: Parsed, extras: Mapping[str, Any]) -> Example:
        kept = self.report.distinct(parsed, extras["source"], self.conflicts)
        self.report.rows += 1
        return example_of(parsed, kept, extras)

    def _bad(self, place: str, error: ValueError, last: bool = False) -> None:
        """Stores a bad record. last: raises an error at once, because all following records have the same problem."""
        self.report.places.append(f"datasets.{self.name}: {place}: {error}")
        if self.on_bad_record == "error" and (last or len(self.report.places) >= MAX_SHOWN):
            self._complain()

    def _complain(self) -> None:
        if self.report.places and self.on_bad_record == "error":
            more = "" if len(self.report.places) < MAX_SHOWN else "\n(only the first twenty are shown)"
            raise BadRecords("\n".join(self.report.places) + more)
