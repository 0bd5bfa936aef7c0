"""Every distinct text, tokenised once, in a memory-mapped file; and the examples as row numbers of it.

Texts of equal tokens, such as two that differ by a second blank, are one row: no text is then a negative of itself.

A folder per (datasets, tokenizer, formats), keyed by fingerprints, so that epochs, tasks, runs and sweep jobs share
it. Several processes may start at once: the first to take the lock builds, the others wait and open. A store whose
files are not as they were written is built again.
"""

from __future__ import annotations

import json
import shutil
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Protocol, runtime_checkable

import numpy as np
import xxhash

from rankpo.data.readers.fields import BadRecord
from rankpo.data.relevance import RELEVANT, UNKNOWN, UnknownRelevance, completed
from rankpo.data.text.conversations import plain_text
from rankpo.storage import locks
from rankpo.storage.folders import damage, written_whole
from rankpo.storage.json_files import read_json, write_json
from rankpo.types import Example

FORMAT_VERSION = 8
CHECKED_BYTES = 1 << 30  # a larger file is looked at for its size alone: reading it would hold up every start
TEXTS_PER_CALL = 2048  # enough to keep the tokenizer's threads busy, little enough to hold in memory

Tokenize = Callable[[Sequence[str]], list[list[int]]]


class Dataset(Protocol):
    """What a dataset must offer: a name, a fingerprint of contents and settings, and a stream of examples."""

    name: str

    def fingerprint(self) -> str: ...

    def examples(self) -> Iterator[Example]: ...


@runtime_checkable
class CollectsBadRecords(Protocol):
    """A dataset that collects its bad records, and raises or skips them at the end of a pass."""

    def note(self, place: str, error: ValueError) -> None: ...


@dataclass(frozen=True)
class Pieces:
    """How texts become token rows: the role's prefix goes in front, special tokens and truncation come later.

    fingerprint: changes whenever `tokenize` or a prefix would give other tokens. render: an example's query and
    candidates as `tokenize` wants them, in place of prefix + text; raises BadRecord for an example that has no such
    form. notes: what `tokenize` counted, kept with the table. own_prompts: whether a record's own prompt takes the place
    of the query's prefix; else it stands behind it, as a part of the query.
    """

    tokenize: Tokenize
    query_prefix: str
    candidate_prefix: str
    fingerprint: str
    render: Callable[[Example], tuple[str, Sequence[str]]] | None = None
    notes: Callable[[], Mapping[str, int]] | None = None
    own_prompts: bool = False

    def texts(self, example: Example) -> tuple[str, Sequence[str]]:
        """The texts under which an example's query and candidates stand in the store."""
        prompt = example.query_prompt
        if self.render is not None:
            own = prompt is not None and isinstance(example.query, str)
            return self.render(replace(example, query=f"{prompt}{example.query}") if own else example)
        before = self.query_prefix
        if prompt is not None:
            before = prompt if self.own_prompts else before + prompt
        after = before if example.symmetric else self.candidate_prefix
        return before + plain_text(example.query), [after + text for text in example.candidates]


class ExampleTable:
    """Examples as arrays over the rows of a token file; texts stay on disk.

    query: [E] row. offsets: [E + 1]; example e has the slots offsets[e]:offsets[e+1] of
    candidates (row), relevance, grades (labels for losses on labels; the relevance itself where the data has no
    others), stated (1 relevant, 0 not, -1 the data does not say) and teacher (NaN where none). confidence: [E], NaN
    where none. dataset: [E] number. own_negatives: [E] bool, other queries' candidates are no negatives of this one.
    max_negatives: [E], of its own at most so many; -1 for all. lengths: [rows] tokens of each row.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meta = read_json(folder / "meta.json")
        self._tokens = self._open("tokens")
        self._token_offsets = self._open("token_offsets")
        self.query = self._open("query")
        self.offsets = self._open("offsets")
        self.candidates = self._open("candidates")
        self.relevance = self._open("relevance")
        self.grades = self._open("grades") if self.has_grades else self.relevance
        self.stated = self._open("stated")
        self.teacher = self._open("teacher")
        self.confidence = self._open("confidence")
        self.dataset = self._open("dataset")
        self.own_negatives = self._open("own_negatives")
        self.max_negatives = self._open("max_negatives")
        self.example_keys = self._open("example_keys")
        self._id_offsets = self._open("id_offsets")
        self._ids = self._open("ids")
        self.lengths = np.diff(self._token_offsets)
        self._positives: tuple[np.ndarray, np.ndarray] | None = None
        self._by_query: tuple[np.ndarray, np.ndarray] | None = None

    def _open(self, name: str) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        # an empty array cannot be mapped
        return np.load(path, mmap_mode="r" if path.stat().st_size > 128 else None, allow_pickle=False)

    def __len__(self) -> int:
        return len(self.query)

    @property
    def num_rows(self) -> int:
        return len(self.lengths)

    @property
    def has_teacher(self) -> bool:
        return bool(self.meta["has_teacher"])

    @property
    def has_grades(self) -> bool:
        """Whether some example has labels beside its lists of positives and negatives."""
        return bool(self.meta["has_grades"])

    @property
    def notes(self) -> dict[str, int]:
        """What was counted while the texts were tokenised, by name."""
        return dict(self.meta["notes"])

    def tokens(self, row: int) -> np.ndarray:
        """Token ids of one row, [length] int32, without special tokens and not truncated."""
        return self._tokens[self._token_offsets[row] : self._token_offsets[row + 1]]

    def slots(self, example: int) -> np.ndarray:
        return np.arange(self.offsets[example], self.offsets[example + 1])

    def id(self, example: int) -> str:
        return bytes(self._ids[self._id_offsets[example] : self._id_offsets[example + 1]]).decode()

    def relevant(self, wanted_by: str) -> np.ndarray:
        """[slots] bool: which candidates are positives. Raises UnknownRelevance naming who wants to know."""
        stated = np.asarray(self.stated)
        unknown = np.flatnonzero(stated == UNKNOWN)
        if len(unknown):
            owner = int(np.searchsorted(self.offsets, unknown[0], side="right")) - 1
            name = self.meta["datasets"][int(self.dataset[owner])]
            met = self.meta["labels"].get(name) or np.asarray(self.relevance)[unknown].tolist()
            raise UnknownRelevance(name, wanted_by, met)
        return stated == RELEVANT

    def known_positives(self, query_row: int) -> np.ndarray:
        """Rows that any example of this query marks as relevant, sorted. Raises UnknownRelevance."""
        if self._positives is None:
            example_of_slot = np.repeat(np.arange(len(self)), np.diff(self.offsets))
            relevant = self.relevant("a pool of negatives")
            pairs = np.stack([self.query[example_of_slot][relevant], self.candidates[relevant]], axis=1)
            pairs = np.unique(pairs, axis=0)
            starts = np.searchsorted(pairs[:, 0], np.arange(self.num_rows + 1))
            self._positives = starts, pairs[:, 1]
        starts, rows = self._positives
        return rows[starts[query_row] : starts[query_row + 1]]

    def judged(self, query_row: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of all candidates of all examples of this query, [n], and their relevance, [n]."""
        if self._by_query is None:
            query_of_slot = np.repeat(np.asarray(self.query), np.diff(self.offsets))
            order = np.argsort(query_of_slot, kind="stable")
            self._by_query = np.searchsorted(query_of_slot[order], np.arange(self.num_rows + 1)), order
        starts, order = self._by_query
        slots = order[starts[query_row] : starts[query_row + 1]]
        return np.asarray(self.candidates)[slots], np.asarray(self.relevance)[slots]


def open_table(
    cache_dir: str | Path, datasets: Sequence[Dataset], pieces: Pieces, say: Callable[[str], None]
) -> ExampleTable:
    """The table of these datasets under these pieces, built first if no process has built it yet.

    Raises whatever a dataset raises for bad records; nothing is left behind then.
    """
    fingerprints = [FORMAT_VERSION, pieces.fingerprint, *(f"{d.name}:{d.fingerprint()}" for d in datasets)]
    key = xxhash.xxh3_128_hexdigest(json.dumps(fingerprints).encode())
    folder = Path(cache_dir) / "text_store" / key
    if _fault(folder) is not None:
        with locks.locked(folder.with_suffix(".lock")):
            if (fault := _fault(folder)) is not None:
                if folder.is_symlink() or folder.is_file():
                    folder.unlink()
                elif folder.exists():
                    say(f"{folder} is damaged ({fault}); it is built again")
                names = ", ".join(dataset.name for dataset in datasets)
                say(f"tokenising {names} into {folder}")
                _build(folder, datasets, pieces)
    return ExampleTable(folder)


_intact: dict[Path, list[tuple[str, int, int]]] = {}  # what stores looked like that this process has read through


def _fault(folder: Path) -> str | None:
    """What is wrong with a store, or None. A process reads each through once, and again where a file was touched."""
    if not folder.is_dir():
        return "it is not there"
    seen = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir())
    if _intact.get(folder) == seen:
        return None
    fault = damage(folder, CHECKED_BYTES)
    if fault is None:
        _intact[folder] = seen
    return fault


def _build(folder: Path, datasets: Sequence[Dataset], pieces: Pieces) -> None:
    with written_whole(folder) as temporary:
        with (temporary / "tokens.raw").open("wb") as file:
            builder = _Builder(pieces, file)
            for number, dataset in enumerate(datasets):
                builder.add(number, dataset)
            builder.finish(temporary, {d.name: asdict(d.report) for d in datasets if hasattr(d, "report")})
        _raw_to_npy(temporary / "tokens.raw", temporary / "tokens.npy")


def _raw_to_npy(raw: Path, target: Path) -> None:
    """Puts a .npy header before raw int32 numbers, block by block: the tokens never stand in memory."""
    with target.open("wb") as out, raw.open("rb") as source:
        shape = (raw.stat().st_size // 4,)
        np.lib.format.write_array_header_1_0(out, {"descr": "<i4", "fortran_order": False, "shape": shape})
        shutil.copyfileobj(source, out, 1 << 24)
    raw.unlink()


class _Builder:
    """Collects examples as rows; tokenises texts not seen before, a few thousand at a time."""

    def __init__(self, pieces: Pieces, file: IO[bytes]) -> None:
        self.pieces = pieces
        self.file = file
        self.rows: dict[bytes, int] = {}  # numbers of texts, in the order in which they come
        self.row_of_text = array("q")  # texts of equal tokens are one row
        self.by_tokens: dict[bytes, int] = {}
        self.waiting: list[str] = []
        self.token_counts: list[np.ndarray] = []
        self.names: list[str] = []
        self.has_grades = False
        # arrays of machine numbers: lists of Python's take four times the memory, for millions of examples
        self.query, self.counts, self.candidates = array("q"), array("q"), array("q")
        self.relevance, self.grades, self.teacher, self.confidence = (array("f") for _ in range(4))
        self.stated, self.dataset = array("b"), array("h")
        self.own_negatives, self.max_negatives = array("b"), array("h")
        self.ids: list[bytes] = []

    def add(self, number: int, dataset: Dataset) -> None:
        self.names.append(dataset.name)
        for example in dataset.examples():
            try:
                query, candidates = self.pieces.texts(example)
            except BadRecord as error:
                _refuse(dataset, example, error)
                continue
            self.query.append(self._row(query))
            self.candidates.extend(self._row(text) for text in candidates)
            self.counts.append(len(example.candidates))
            self.relevance.extend(example.relevance)
            self.grades.extend(example.relevance if example.grades is None else example.grades)
            self.has_grades |= example.grades is not None
            self.stated.extend([UNKNOWN] * len(example.candidates) if example.relevant is None else example.relevant)
            self.teacher.extend(example.teacher or [float("nan")] * len(example.candidates))
            self.confidence.append(float("nan") if example.confidence is None else example.confidence)
            self.dataset.append(number)
            self.own_negatives.append(example.own_negatives)
            self.max_negatives.append(-1 if example.max_negatives is None else example.max_negatives)
            self.ids.append(example.id.encode())

    def _row(self, text: str) -> int:
        digest = xxhash.xxh3_128_digest(text.encode())
        row = self.rows.get(digest)
        if row is None:
            row = self.rows[digest] = len(self.rows)
            self.waiting.append(text)
            if len(self.waiting) >= TEXTS_PER_CALL:
                self._flush()
        return row

    def _flush(self) -> None:
        if not self.waiting:
            return
        fresh = []
        for ids in self.pieces.tokenize(self.waiting):
            tokens = np.asarray(ids, dtype="<i4")
            count = len(self.by_tokens)
            row = self.by_tokens.setdefault(xxhash.xxh3_128_digest(tokens.tobytes()), count)
            self.row_of_text.append(row)
            if row == count:
                fresh.append(tokens)
        self.token_counts.append(np.array([len(tokens) for tokens in fresh], dtype=np.int64))
        np.concatenate([*fresh, np.zeros(0, dtype="<i4")]).tofile(self.file)
        self.waiting.clear()

    def finish(self, folder: Path, reports: Mapping[str, Mapping[str, object]]) -> None:
        """Writes the arrays. reports: what each dataset met while it was read (`records.PassReport`), by name."""
        self._flush()
        self.file.flush()
        teacher = np.array(self.teacher, dtype=np.float32)
        relevance = np.array(self.relevance, dtype=np.float32)
        owners = np.repeat(np.array(self.dataset, dtype=np.int16), np.array(self.counts, dtype=np.int64))
        stated = np.array(self.stated, dtype=np.int8)
        rows = np.array(self.row_of_text, dtype=np.int64)
        arrays = {
            "token_offsets": _offsets(np.concatenate(self.token_counts) if self.token_counts else np.zeros(0, int)),
            "query": rows[np.array(self.query, dtype=np.int64)],
            "offsets": _offsets(np.array(self.counts, dtype=np.int64)),
            "candidates": rows[np.array(self.candidates, dtype=np.int64)],
            "relevance": relevance,
            "stated": completed(stated, relevance, owners),
            "teacher": teacher,
            "confidence": np.array(self.confidence, dtype=np.float32),
            "dataset": np.array(self.dataset, dtype=np.int16),
            "own_negatives": np.array(self.own_negatives, dtype=bool),
            "max_negatives": np.array(self.max_negatives, dtype=np.int16),
            "example_keys": np.array([xxhash.xxh3_64_intdigest(name) for name in self.ids], dtype=np.uint64),
            "id_offsets": _offsets(np.array([len(name) for name in self.ids], dtype=np.int64)),
            "ids": np.frombuffer(b"".join(self.ids), dtype=np.uint8),
        }
        if self.has_grades:
            arrays["grades"] = np.array(self.grades, dtype=np.float32)
        for name, values in arrays.items():
            np.save(folder / f"{name}.npy", values, allow_pickle=False)
        notes = {} if self.pieces.notes is None else dict(self.pieces.notes())
        has_teacher = bool(len(teacher) and not np.isnan(teacher).any())
        meta = {
            "format": FORMAT_VERSION,
            "datasets": self.names,
            "has_teacher": has_teacher,
            "has_grades": self.has_grades,
            "labels": {name: met["labels"] for name, met in reports.items() if met.get("labels")},
            "notes": notes,
            "reports": reports,
        }
        write_json(folder / "meta.json", meta)


def _refuse(dataset: Dataset, example: Example, error: BadRecord) -> None:
    """Treats an example that the model's format refuses as the dataset treats its bad records. Raises BadRecord."""
    if not isinstance(dataset, CollectsBadRecords):
        raise BadRecord(f"datasets.{dataset.name}: {example.source or example.id}: {error}") from error
    dataset.note(example.source, error)


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
