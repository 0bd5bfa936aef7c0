"""Fields of a record: their paths and their checked values."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any

from rankpo.errors import InputError

Record = Mapping[str, Any]


class BadRecord(InputError, ValueError):
    """The problem of one record. The message does not hold the file and line."""


Spec = str | Sequence[str] | None


@dataclass(kw_only=True)
class FieldMap:
    """The field of each role in a record, as a path of `extract`; None for the name that the format defines."""

    query: Spec = None
    positives: Spec = None
    negatives: Spec = None
    candidates: Spec = None
    relevance: Spec = None
    passage1: Spec = None
    passage2: Spec = None
    preferred: Spec = None
    confidence_score: Spec = None
    pos_scores: Spec = None
    neg_scores: Spec = None
    hits: Spec = None
    content: Spec = None
    prompt: Spec = None
    label: Spec = None
    id: Spec = None

    def mapped(self) -> dict[str, str | Sequence[str]]:
        """The roles that are set."""
        return {name: value for name in ROLES if (value := getattr(self, name)) is not None}


PROMPTS = ("prompt", "prompt_for_query", "instruction", "query_instruction")  # Names of a query's prompt in a record.
ROLES = tuple(item.name for item in fields(FieldMap))


@dataclass(frozen=True)
class Options:
    """The options of a dataset of records.

    fields: field names by role, from the field map. key: the config key of the dataset, for messages.
    relevant_from: the smallest label that is relevant, in the units of the file; None if it is unknown.
    found: the roles that some record had. labels: the smallest and the largest label so far, in the units of the file.
    used: top-level keys that were read. order: for a file that is read by the order of its columns, the columns of texts
    and the column of labels. lookup: returns the text of a document by its id, if the dataset has a corpus.
    """

    fields: Mapping[str, Any]
    min_label: float | None = None
    max_label: float | None = None
    scores_are: str = "relevance"
    key: str = "datasets.NAME"
    relevant_from: float | None = None
    found: set[str] = field(default_factory=set)
    labels: list[float] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    order: tuple[Sequence[str], str | None] = ((), None)
    lookup: Callable[[str], str | None] | None = None

    def use(self, *specs: Spec) -> None:
        """Records the top-level keys of paths that are read."""
        for spec in specs:
            for path in [spec] if isinstance(spec, str) else spec or ():
                self.used.update((path, path.partition(".")[0].removesuffix("[]")))

    def prompt(self, record: Record) -> str | None:
        """The query's prompt in a record, which replaces the prompt of the model; None if the record has none."""
        spec = self.fields.get("prompt")
        for name in [spec] if spec is not None else PROMPTS:
            value = extract(record, name)
            if isinstance(value, str):
                self.use(name)
                self.found.add("prompt")
                return value
        return None

    def get(self, record: Record, role: str, default: str | None = None) -> Any:
        """The value of a role. Raises BadRecord with the found keys and the key to set."""
        spec = self.fields.get(role) or default or role
        value = extract(record, spec)
        self.found.add(role)
        self.use(spec)
        if value is None and isinstance(spec, str) and spec in record:
            raise BadRecord(f"field {spec!r} is null")
        if value is None:
            hint = f"{self.key}.{role}={spec} names it" if role in self.fields else self._remedy(record, role)
            raise BadRecord(f"no field {spec!r} (found: {', '.join(map(str, record)) or 'nothing'}); {hint}")
        return value

    def _remedy(self, record: Record, role: str) -> str:
        free = [str(name) for name in record if name not in ROLES]  # Names of other roles are no suggestion.
        near = get_close_matches(role, free, n=1, cutoff=0.5)
        return f"set {self.key}.{role}={near[0] if near else '<one of these>'}"

    def optional(self, record: Record, role: str, default: str | None = None) -> object:
        spec = self.fields.get(role) or default or role
        value = extract(record, spec)
        self.use(spec)
        if value is not None:
            self.found.add(role)
        return value

    def relevant(self, labels: Sequence[float]) -> list[bool] | None:
        """Whether each label, in the units of the file, is relevant; None without a threshold."""
        if labels:
            met = [*self.labels, *labels]
            self.labels[:] = [min(met), max(met)]
        return None if self.relevant_from is None else [label >= self.relevant_from for label in labels]

    def scaled(self, label: float) -> float:
        """Returns (label - min_label) / (max_label - min_label), or the label itself without a range."""
        if self.min_label is None or self.max_label is None:
            return label
        if not self.min_label <= label <= self.max_label:
            raise BadRecord(f"label {label} is outside [{self.min_label}, {self.max_label}]")
        return (label - self.min_label) / (self.max_label - self.min_label)


def extract(record: object, spec: Any) -> Any:
    """The value at a path, or None if it does not exist.

    `a.b` is a nested field, `a[]` and `a[].b` collect the items of a list, `a_*` collects numbered columns, a list of
    paths joins their texts, and `=text` is a constant.
    """
    if isinstance(spec, list | tuple):
        parts = [extract(record, item) for item in spec]
        return None if any(part is None for part in parts) else " ".join(str(part) for part in parts)
    if spec.startswith("="):
        return spec[1:]
    if isinstance(record, Mapping) and spec in record:
        return record[spec]
    if spec.endswith("_*") and isinstance(record, Mapping):
        stem = spec[:-1]
        names = [n for n in record if n.startswith(stem) and n[len(stem) :].isdecimal()]
        found = [record[name] for name in sorted(names, key=lambda name: int(name[len(stem) :]))]
        # The number of columns varies between records, so empty ones are skipped.
        return [value for value in found if value is not None and value != ""] if names else None
    head, _, rest = spec.partition(".")
    value = record.get(head.removesuffix("[]")) if isinstance(record, Mapping) else None
    if head.endswith("[]"):
        if not isinstance(value, list):
            return None
        return [extract(item, rest) for item in value] if rest else value
    return extract(value, rest) if rest and value is not None else (value if not rest else None)


def text(value: object, role: str) -> str:
    """Returns the value if it is a non-empty string. Raises BadRecord otherwise."""
    if not isinstance(value, str):
        raise BadRecord(f"{role} must be a text, got {type(value).__name__}")
    if not value.strip():
        raise BadRecord(f"{role} is empty")
    return value.strip()


def items(value: object, role: str) -> list[Any]:
    """The items of a list, [] for null. Raises BadRecord for a text or an object, whose letters or keys are no items."""
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        raise BadRecord(f"{role} must be a list, got {type(value).__name__}")
    return list(value)


def texts(value: object, role: str) -> list[str]:
    """A list of texts. Raises BadRecord for a string, which would otherwise be read letter by letter."""
    if not isinstance(value, list | tuple):
        raise BadRecord(f"{role} must be a list of texts, got {type(value).__name__}")
    return [text(item, f"{role}[{index}]") for index, item in enumerate(value)]


def filled(value: object, role: str) -> list[str]:
    """The non-empty texts of a list, or of a single text. Some columns are empty in some records."""
    items = value if isinstance(value, list | tuple) else [value]
    kept = [(index, item) for index, item in enumerate(items) if item is not None and item != ""]
    return [text(item, f"{role}[{index}]" if len(items) > 1 else role) for index, item in kept]


def number(value: object, role: str) -> float:
    """A finite number. Raises BadRecord for booleans and for strings, except for the digits of CSV files."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise BadRecord(f"{role} must be a number, got {value!r}") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRecord(f"{role} must be a finite number, got {value!r}")
    return float(value)


def numbers(value: object, count: int, role: str, other: str) -> list[float]:
    if not isinstance(value, list | tuple) or len(value) != count:
        size = len(value) if isinstance(value, list | tuple) else type(value).__name__
        raise BadRecord(f"{role} must have one number for each of {other} ({count}), got {size}")
    return [number(item, f"{role}[{index}]") for index, item in enumerate(value)]


def inner(value: object, role: str) -> object:
    """The `text` of an object in the raw format. Raises BadRecord for any other value."""
    if not isinstance(value, Mapping) or "text" not in value:
        found = ", ".join(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
        raise BadRecord(f"{role} must be an object with text, as in the first record of the file, got {found}")
    return value["text"]


def check_id(value: object) -> str:
    """An id as a string. Raises BadRecord for a control character or line separator, because files of ids have lines."""
    name = str(value)
    if bad := next((letter for letter in name if unicodedata.category(letter) in ("Cc", "Zl", "Zp")), None):
        raise BadRecord(f"the id {name!r} contains the control character {bad!r}")
    return name


def normal(text: str) -> str:
    """A text normalised for comparison: NFC, with white space collapsed."""
    return " ".join(unicodedata.normalize("NFC", text).split())
