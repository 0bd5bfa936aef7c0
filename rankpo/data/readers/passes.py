"""Reports of passes over a dataset: counts of records, bad records, and equal candidates of one record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rankpo.data.readers.fields import BadRecord, normal
from rankpo.data.readers.parsed import Parsed
from rankpo.data.relevance import binary
from rankpo.errors import ManyLines

MAX_SHOWN = 20
MAX_PLACES = 3  # The number of places to list for merged and conflicting candidates.


class BadRecords(ManyLines):
    """Up to twenty bad records, one line each."""


@dataclass
class PassReport:
    """The counts and lists of a pass over a dataset.

    rows: records used. filtered: records that `where` or `min_confidence` excluded. merged: equal candidates of one
    example. conflicts: merged candidates of which one is relevant and the other is not. places: the bad records, as
    `dataset: file:line: reason`. labels: the smallest and the largest label of records with labels in place of lists, in
    the units of the file. unused: fields that no reader used. order: for files that are read by the order of their
    columns, the role of each column.
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
    order: list[str] = field(default_factory=list)
    seen: dict[str, None] = field(default_factory=dict)

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

    def distinct(self, parsed: Parsed, place: str, conflicts: str) -> list[int]:
        """Indices of the candidates to keep: one of equal texts, a positive if any, then the one with the larger label.

        Counts the merged candidates. Raises BadRecord for a candidate that is equal to the query, and, with
        conflicts=error, for one that is both relevant and irrelevant.
        """
        query = normal(parsed.query)
        stays: dict[str, int] = {}
        for index, candidate in enumerate(parsed.candidates):
            key = normal(candidate)
            if key == query:
                raise BadRecord("a candidate is equal to the query")
            known = stays.setdefault(key, index)
            if known != index:
                self._note_merge(parsed, known, index, place, conflicts)
                if parsed.relevance[index] > parsed.relevance[known]:
                    stays[key] = index
        return list(stays.values())

    def _note_merge(self, parsed: Parsed, first: int, second: int, place: str, conflicts: str) -> None:
        values = [parsed.relevance[first], parsed.relevance[second]]
        known = [value == 1 for value in values] if binary(values) else [True, True]
        if parsed.relevant is not None:
            known = [parsed.relevant[first], parsed.relevant[second]]
        if known[0] != known[1]:
            if conflicts == "error":
                raise BadRecord("a candidate is both positive and negative; set conflicts=merge to keep the positive")
            self.conflicts += 1
            self.conflict_places = [*self.conflict_places, place][:MAX_PLACES]
        self.merged += 1
        self.merged_places = [*self.merged_places, place][:MAX_PLACES]

    def note_fields(self, record: Mapping[str, object]) -> None:
        """Stores the fields of a record, for `name_unused`."""
        self.seen.update(dict.fromkeys(map(str, record)))

    def name_unused(self, used: set[str]) -> None:
        """Lists the fields of records that no reader used, in their order."""
        self.unused = [name for name in self.seen if name not in used]
