"""Builder of the files of a table, which tokenises every distinct text once."""

from __future__ import annotations

import shutil
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
import xxhash

from rankpo.data.dataset import CollectsBadRecords, Dataset, Pieces, ReportsPasses
from rankpo.data.digest_table import DigestTable, digest_array
from rankpo.data.readers.fields import BadRecord
from rankpo.data.relevance import UNKNOWN, completed
from rankpo.data.text.long_texts import calls
from rankpo.storage.folders import written_whole
from rankpo.storage.json_files import write_json
from rankpo.types import Example

FORMAT_VERSION = 8
TEXTS_AT_ONCE = 1 << 15  # that wait to be looked up among all others
BYTES_AT_ONCE = 1 << 23


def build_table(folder: Path, datasets: Sequence[Dataset], pieces: Pieces) -> None:
    with written_whole(folder) as temporary:
        with (temporary / "tokens.raw").open("wb") as file:
            builder = Builder(pieces, file)
            for number, dataset in enumerate(datasets):
                builder.add(number, dataset)
            builder.finish(temporary, {d.name: asdict(d.report) for d in datasets if isinstance(d, ReportsPasses)})
        _raw_to_npy(temporary / "tokens.raw", temporary / "tokens.npy")


def _raw_to_npy(raw: Path, target: Path) -> None:
    """Copies raw int32 numbers to a .npy file block by block, so that the tokens are never in memory together."""
    with target.open("wb") as out, raw.open("rb") as source:
        shape = (raw.stat().st_size // 4,)
        np.lib.format.write_array_header_1_0(out, {"descr": "<i4", "fortran_order": False, "shape": shape})
        shutil.copyfileobj(source, out, 1 << 24)
    raw.unlink()


class Builder:
    """Collects examples as rows, and tokenises new texts in batches of a few thousand."""

    def __init__(self, pieces: Pieces, file: IO[bytes]) -> None:
        self.pieces = pieces
        self.file = file
        self.rows = DigestTable()  # of texts
        self.by_tokens = DigestTable()  # Texts with equal tokens share a row.
        self.num_rows = 0
        self.waiting: dict[bytes, str] = {}  # distinct texts of the occurrences below, by digest
        self.waiting_bytes = 0
        self.occurrences: list[bytes] = []  # digests of each example's query and candidates, in order
        # For millions of examples, Python lists would need four times the memory of these arrays.
        self.found = array("i")  # rows of the occurrences that are tokenised
        self.token_counts = array("i")
        self.names: list[str] = []
        self.has_grades = False
        self.counts = array("i")
        self.relevance, self.grades, self.teacher, self.confidence = (array("f") for _ in range(4))
        self.stated, self.dataset = array("b"), array("h")
        self.own_negatives, self.max_negatives = array("b"), array("h")
        self.ids, self.id_lengths, self.example_keys = bytearray(), array("i"), array("Q")

    def add(self, number: int, dataset: Dataset) -> None:
        self.names.append(dataset.name)
        for example in dataset.examples():
            try:
                query, candidates = self.pieces.texts(example)
            except BadRecord as error:
                _refuse(dataset, example, error)
                continue
            for text in (query, *candidates):
                self._wait(text)
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
            name = example.id.encode()
            self.ids += name
            self.id_lengths.append(len(name))
            self.example_keys.append(xxhash.xxh3_64_intdigest(name))
            if self.waiting_bytes > BYTES_AT_ONCE or len(self.occurrences) > TEXTS_AT_ONCE:
                self._flush()

    def _wait(self, text: str) -> None:
        encoded = text.encode()
        digest = xxhash.xxh3_128_digest(encoded)
        self.occurrences.append(digest)
        if digest not in self.waiting:
            self.waiting[digest] = text
            self.waiting_bytes += len(encoded)

    def _flush(self) -> None:
        """Gives every waiting text its row."""
        digests = list(self.waiting)
        keys = digest_array(digests)
        rows = self.rows.find(keys)
        new = np.flatnonzero(rows < 0)
        rows[new] = self._tokenised([self.waiting[digests[number]] for number in new])
        self.rows.add(keys[new], rows[new])
        row_of = dict(zip(digests, rows.tolist(), strict=True))
        self.found.extend(row_of[digest] for digest in self.occurrences)
        self.waiting.clear()
        self.occurrences.clear()
        self.waiting_bytes = 0

    def _tokenised(self, texts: Sequence[str]) -> list[int]:
        """Rows of new texts, whose tokens are written unless another text has the same."""
        rows: list[int] = []
        for call in calls(texts):
            tokens = [np.asarray(ids, dtype="<i4") for ids in self.pieces.tokenize(call)]
            digests = [xxhash.xxh3_128_digest(ids.tobytes()) for ids in tokens]
            known = self.by_tokens.find(digest_array(digests)).tolist()
            row_of: dict[bytes, int] = {}
            fresh: list[np.ndarray] = []
            for digest, ids, row in zip(digests, tokens, known, strict=True):
                if row < 0 and digest not in row_of:
                    row_of[digest] = self.num_rows + len(fresh)
                    fresh.append(ids)
                rows.append(row if row >= 0 else row_of[digest])
            self.by_tokens.add(digest_array(list(row_of)), np.array(list(row_of.values())))
            self.num_rows += len(fresh)
            self.token_counts.extend(map(len, fresh))
            np.concatenate([*fresh, np.zeros(0, dtype="<i4")]).tofile(self.file)
        return rows

    def finish(self, folder: Path, reports: Mapping[str, Mapping[str, object]]) -> None:
        """Writes the arrays. reports: the report of reading each dataset (`passes.PassReport`), by name."""
        self._flush()
        self.rows, self.by_tokens = DigestTable(), DigestTable()  # The memory is free for the arrays.
        self.file.flush()
        for name, values in self._arrays():
            np.save(folder / f"{name}.npy", values, allow_pickle=False)
        teacher = _view(self.teacher, np.float32)
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

    def _arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields the arrays of `ExampleTable` with their file names, one at a time for the sake of memory."""
        counts = np.array(self.counts, dtype=np.int64)
        yield "offsets", _offsets(counts)
        yield "token_offsets", _offsets(_view(self.token_counts, np.int32))
        rows = _view(self.found, np.int32)
        is_query = np.zeros(len(rows), dtype=bool)
        is_query[_offsets(counts + 1)[:-1]] = True
        yield "query", rows[is_query].astype(np.int64)
        yield "candidates", rows[~is_query].astype(np.int64)
        relevance = _view(self.relevance, np.float32)
        yield "relevance", relevance
        owners = np.repeat(_view(self.dataset, np.int16), counts)
        yield "stated", completed(_view(self.stated, np.int8), relevance, owners)
        if self.has_grades:
            yield "grades", _view(self.grades, np.float32)
        yield "teacher", _view(self.teacher, np.float32)
        yield "confidence", _view(self.confidence, np.float32)
        yield "dataset", _view(self.dataset, np.int16)
        yield "own_negatives", _view(self.own_negatives, np.bool_)
        yield "max_negatives", _view(self.max_negatives, np.int16)
        yield "example_keys", _view(self.example_keys, np.uint64)
        yield "id_offsets", _offsets(_view(self.id_lengths, np.int32))
        yield "ids", np.frombuffer(self.ids, dtype=np.uint8)


def _refuse(dataset: Dataset, example: Example, error: BadRecord) -> None:
    """Treats an example that the model's format rejects as a bad record of the dataset. May raise BadRecord."""
    if not isinstance(dataset, CollectsBadRecords):
        raise BadRecord(f"datasets.{dataset.name}: {example.source or example.id}: {error}") from error
    dataset.note(example.source, error)


def _view(values: array[Any], dtype: type[np.generic]) -> np.ndarray:
    """The numbers of an array without a copy."""
    return np.frombuffer(values, dtype=dtype) if len(values) else np.zeros(0, dtype)


def _offsets(counts: np.ndarray) -> np.ndarray:
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets
