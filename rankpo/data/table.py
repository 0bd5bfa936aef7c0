"""ExampleTable: a memory-mapped file of tokenised distinct texts, and examples as row numbers.

Texts with equal tokens, such as two that differ by a second space, share one row, so that no text is a negative of itself.

Each combination of datasets, tokenizer and formats has a folder, keyed by fingerprints, which epochs, tasks, runs and
sweep jobs share. If several processes start together, one takes the lock and builds the table, and the others wait. A
damaged table is built again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import xxhash

from rankpo.data.dataset import Dataset, Pieces
from rankpo.data.relevance import RELEVANT, UNKNOWN, UnknownRelevance
from rankpo.data.table_files import FORMAT_VERSION, build_table
from rankpo.storage import locks
from rankpo.storage.folders import damage
from rankpo.storage.json_files import read_json

CHECKED_BYTES = 1 << 30  # Only the size of larger files is checked, because reading them would delay every start.


class ExampleTable:
    """Examples as arrays over the rows of a token file. Texts are on disk.

    query: [E] rows. offsets: [E + 1]; example e has the slots offsets[e]:offsets[e+1] of candidates (rows), relevance,
    grades (labels for losses on labels, or the relevance if the data has no other labels), stated (1 relevant, 0
    irrelevant, -1 unknown) and teacher (NaN if missing). confidence: [E], NaN if missing. dataset: [E] indices of
    datasets. own_negatives: [E] bool, whether the query uses its own negatives only. max_negatives: [E] the largest
    number of its own negatives, -1 for all. lengths: [rows] tokens of each row.
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
        # An empty array cannot be memory-mapped.
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
        """Whether some example has labels in addition to lists of positives and negatives."""
        return bool(self.meta["has_grades"])

    @property
    def notes(self) -> dict[str, int]:
        """The counts of the tokenisation, by name."""
        return dict(self.meta["notes"])

    def tokens(self, row: int) -> np.ndarray:
        """Token ids of one row, [length] int32, without special tokens and without truncation."""
        return self._tokens[self._token_offsets[row] : self._token_offsets[row + 1]]

    def slots(self, example: int) -> np.ndarray:
        return np.arange(self.offsets[example], self.offsets[example + 1])

    def id(self, example: int) -> str:
        return bytes(self._ids[self._id_offsets[example] : self._id_offsets[example + 1]]).decode()

    def relevant(self, wanted_by: str, alternative: str | None = None) -> np.ndarray:
        """Whether each candidate is a positive, [slots] bool. Raises UnknownRelevance with the arguments."""
        stated = np.asarray(self.stated)
        unknown = np.flatnonzero(stated == UNKNOWN)
        if len(unknown):
            owner = int(np.searchsorted(self.offsets, unknown[0], side="right")) - 1
            name = self.meta["datasets"][int(self.dataset[owner])]
            met = self.meta["labels"].get(name) or np.asarray(self.relevance)[unknown].tolist()
            raise UnknownRelevance(name, wanted_by, met, alternative)
        return stated == RELEVANT

    def known_positives(self, query_row: int) -> np.ndarray:
        """Rows that any example of this query marks as relevant, sorted. Raises UnknownRelevance."""
        if self._positives is None:
            relevant = self.relevant("a pool of negatives")
            pairs = np.repeat(np.asarray(self.query, dtype=np.int64) * self.num_rows, np.diff(self.offsets))[relevant]
            pairs = np.unique(pairs + self.candidates[relevant])
            self._positives = _starts(pairs // self.num_rows, self.num_rows), pairs % self.num_rows
        starts, rows = self._positives
        return rows[starts[query_row] : starts[query_row + 1]]

    def judged(self, query_row: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of all candidates of all examples of this query, [n], and their relevance, [n]."""
        if self._by_query is None:
            query_of_slot = np.repeat(np.asarray(self.query), np.diff(self.offsets))
            order = np.argsort(query_of_slot, kind="stable")
            self._by_query = _starts(query_of_slot, self.num_rows), order
        starts, order = self._by_query
        slots = order[starts[query_row] : starts[query_row + 1]]
        return np.asarray(self.candidates)[slots], np.asarray(self.relevance)[slots]


def _starts(rows: np.ndarray, num_rows: int) -> np.ndarray:
    """[num_rows + 1] the place of the first entry of each row among the sorted `rows`, and their number."""
    starts = np.zeros(num_rows + 1, dtype=np.int64)
    np.cumsum(np.bincount(rows, minlength=num_rows), out=starts[1:])
    return starts


def open_table(
    cache_dir: str | Path, datasets: Sequence[Dataset], pieces: Pieces, say: Callable[[str], None]
) -> ExampleTable:
    """The table of these datasets with these pieces, which is built unless it exists.

    Raises the errors of datasets for bad records; no files are left in this case.
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
                    say(f"{folder} is damaged ({fault}) and is built again")
                names = ", ".join(dataset.name for dataset in datasets)
                say(f"tokenising {names} into {folder}")
                build_table(folder, datasets, pieces)
    return ExampleTable(folder)


_intact: dict[Path, list[tuple[str, int, int]]] = {}  # File states of the stores that this process has verified.


def _fault(folder: Path) -> str | None:
    """The damage of a store, or None. A process reads each store once, and again if a file has changed."""
    if not folder.is_dir():
        return "it is not there"
    seen = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir())
    if _intact.get(folder) == seen:
        return None
    fault = damage(folder, CHECKED_BYTES)
    if fault is None:
        _intact[folder] = seen
    return fault
