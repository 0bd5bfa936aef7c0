"""Builder of the files of a table, which tokenises every distinct text once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO

import numpy as np
import xxhash

from rankpo.data.column import Column
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
            builder = Builder(pieces, file, temporary)
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

    def __init__(self, pieces: Pieces, file: IO[bytes], folder: Path) -> None:
        self.pieces = pieces
        self.file = file
        self.rows = DigestTable()  # of texts
        self.by_tokens = DigestTable()  # Texts with equal tokens share a row.
        self.num_rows = 0
        self.waiting: dict[bytes, str] = {}  # distinct texts of the occurrences below, by digest
        self.waiting_bytes = 0
        self.occurrences: list[bytes] = []  # digests of each example's query and candidates, in order
        self.names: list[str] = []
        self.has_grades = False
        self.columns: list[Column] = []

        def column(name: str, code: str, dtype: type[np.generic] | None = None) -> Column:
            self.columns.append(Column(folder / f"{name}.raw", code, dtype))
            return self.columns[-1]

        self.found = column("found", "i")  # rows of the occurrences that are tokenised
        self.token_counts, self.counts = column("token_counts", "i"), column("counts", "i")
        self.relevance, self.grades = column("relevance", "f"), column("grades", "f")
        self.teacher, self.confidence = column("teacher", "f"), column("confidence", "f")
        self.stated, self.dataset = column("stated", "b"), column("dataset", "h")
        self.own_negatives = column("own_negatives", "b", np.bool_)
        self.max_negatives = column("max_negatives", "h")
        self.ids, self.id_lengths = column("ids", "B"), column("id_lengths", "i")
        self.example_keys = column("example_keys", "Q", np.uint64)

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
            self.ids.extend(name)
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
        for column in self.columns:
            column.spill()

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
        has_teacher = False
        for name, values in self._arrays():
            np.save(folder / f"{name}.npy", values, allow_pickle=False)
            if name == "teacher":
                has_teacher = bool(len(values) and not np.isnan(values).any())
        notes = {} if self.pieces.notes is None else dict(self.pieces.notes())
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
        counts = self.counts.whole().astype(np.int64)
        yield "offsets", _offsets(counts)
        yield "token_offsets", _offsets(self.token_counts.whole())
        rows = self.found.whole()
        is_query = np.zeros(len(rows), dtype=bool)
        is_query[_offsets(counts + 1)[:-1]] = True
        yield "query", rows[is_query].astype(np.int64)
        yield "candidates", rows[~is_query].astype(np.int64)
        relevance, dataset = self.relevance.whole(), self.dataset.whole()
        yield "relevance", relevance
        yield "dataset", dataset
        yield "stated", completed(self.stated.whole(), relevance, np.repeat(dataset, counts))
        grades = self.grades.whole()
        if self.has_grades:
            yield "grades", grades
        yield "teacher", self.teacher.whole()
        yield "confidence", self.confidence.whole()
        yield "own_negatives", self.own_negatives.whole()
        yield "max_negatives", self.max_negatives.whole()
        yield "example_keys", self.example_keys.whole()
        yield "id_offsets", _offsets(self.id_lengths.whole())
        yield "ids", self.ids.whole()


def _refuse(dataset: Dataset, example: Example, error: BadRecord) -> None:
    """Treats an example that the model's format rejects as a bad record of the dataset. May raise BadRecord."""
    if not isinstance(dataset, CollectsBadRecords):
        raise BadRecord(f"datasets.{dataset.name}: {example.source or example.id}: {error}") from error
    dataset.note(example.source, error)


def _offsets(counts: np.ndarray) -> np.ndarray:
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets
