"""The builder of a table's files: examples as rows, every distinct text tokenised once."""

from __future__ import annotations

import shutil
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO

import numpy as np
import xxhash

from rankpo.data.dataset import CollectsBadRecords, Dataset, Pieces, ReportsPasses
from rankpo.data.readers.fields import BadRecord
from rankpo.data.relevance import UNKNOWN, completed
from rankpo.storage.folders import written_whole
from rankpo.storage.json_files import write_json
from rankpo.types import Example

FORMAT_VERSION = 8
TEXTS_PER_CALL = 2048  # enough to keep the tokenizer's threads busy, little enough to hold in memory


def build_table(folder: Path, datasets: Sequence[Dataset], pieces: Pieces) -> None:
    with written_whole(folder) as temporary:
        with (temporary / "tokens.raw").open("wb") as file:
            builder = Builder(pieces, file)
            for number, dataset in enumerate(datasets):
                builder.add(number, dataset)
            builder.finish(temporary, {d.name: asdict(d.report) for d in datasets if isinstance(d, ReportsPasses)})
        _raw_to_npy(temporary / "tokens.raw", temporary / "tokens.npy")


def _raw_to_npy(raw: Path, target: Path) -> None:
    """Puts a .npy header before raw int32 numbers, block by block: the tokens never stand in memory."""
    with target.open("wb") as out, raw.open("rb") as source:
        shape = (raw.stat().st_size // 4,)
        np.lib.format.write_array_header_1_0(out, {"descr": "<i4", "fortran_order": False, "shape": shape})
        shutil.copyfileobj(source, out, 1 << 24)
    raw.unlink()


class Builder:
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
        arrays = self._arrays()
        for name, values in arrays.items():
            np.save(folder / f"{name}.npy", values, allow_pickle=False)
        teacher = arrays["teacher"]
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

    def _arrays(self) -> dict[str, np.ndarray]:
        """The arrays of `ExampleTable`, by the names of their files."""
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
            "teacher": np.array(self.teacher, dtype=np.float32),
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
        return arrays


def _refuse(dataset: Dataset, example: Example, error: BadRecord) -> None:
    """Treats an example that the model's format refuses as the dataset treats its bad records. Raises BadRecord."""
    if not isinstance(dataset, CollectsBadRecords):
        raise BadRecord(f"datasets.{dataset.name}: {example.source or example.id}: {error}") from error
    dataset.note(example.source, error)


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
