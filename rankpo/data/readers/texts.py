"""Texts with ids: corpora and queries of BEIR, Tevatron, MS MARCO, NeMo and plain files, streamed or looked up by id."""

from __future__ import annotations

import hashlib
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import xxhash

from rankpo.data.readers import files
from rankpo.data.readers.fields import check_id, extract
from rankpo.storage.atomic import in_temporary_folder

ID_KEYS = ("_id", "id", "docid", "doc_id", "document_id", "pid", "query_id", "question_id", "qid")
TEXT_KEYS = {
    "passage": ("text", "content", "contents", "passage", "segment", "document_text", "document", "body"),
    "query": ("text", "query", "query.text", "query_text", "question"),
}
BEIR_FILES = {"passage": "corpus.jsonl", "query": "queries.jsonl"}
BESIDE = ("corpus", "collection", "documents", "passages")  # Names of a corpus in the folder of the records.
TITLE_COLUMN, BODY_COLUMN = -2, -1  # MS MARCO's documents have the columns id, url, title and body.


def text_id(text: str) -> str:
    """The id of a text without one, the first 16 hex digits of its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_texts(path: Path, role: str) -> Iterator[tuple[str, str | None, str]]:
    """Yields (place, id or None, text) for each record of a file. A title precedes its text.

    role: "passage" or "query", which determines the keys. Tables without a header have the columns of MS MARCO: id and
    text, or id, url, title and body. Raises ValueError, with the line, for a record without text.
    """
    for place, identity, title, text in read_titled(path, role):
        yield place, identity, joined(title, text)


def read_titled(path: Path, role: str) -> Iterator[tuple[str, str | None, str, str]]:
    """Like `read_texts`, with the title, which may be empty, and the text behind it: (place, id or None, title, text)."""
    if files.is_table(path) and not _has_header(path, role):
        yield from _of_rows(path)
        return
    for place, record in files.records(path):
        yield place, *_parts(place, record, role)


def joined(title: str, text: str) -> str:
    return f"{title} {text}".strip()


def _has_header(path: Path, role: str) -> bool:
    known = {*ID_KEYS, *TEXT_KEYS[role], "title", "url"}
    first = next(iter(files.first_row(path)), "")
    return first.strip().lower() in known


def _of_rows(path: Path) -> Iterator[tuple[str, str | None, str, str]]:
    for place, row in files.rows(path):
        if isinstance(row, files.NotARecord):
            raise ValueError(f"{place}: {row}")
        if len(row) not in (2, 4):
            raise ValueError(
                f"{place}: {len(row)} columns; without a header there are 2 (id, text) or 4 (id, url, title, body)"
            )
        title = "" if len(row) == 2 else row[TITLE_COLUMN]
        yield place, _id(row[0], place), title, row[BODY_COLUMN]


def of_record(place: str, record: object, role: str) -> tuple[str | None, str]:
    """(id or None, text) of a record; a title precedes its text. Raises ValueError for a record without text."""
    identity, title, text = _parts(place, record, role)
    return identity, joined(title, text)


def _parts(place: str, record: object, role: str) -> tuple[str | None, str, str]:
    if not isinstance(record, Mapping):
        raise ValueError(f"{place}: {record}")
    keys = TEXT_KEYS[role]
    found = (extract(record, key) for key in keys)
    text = next((value for value in found if isinstance(value, str)), None)
    if text is None:
        raise ValueError(f"{place}: no text under {', '.join(keys)} (found: {', '.join(record) or 'nothing'})")
    title = record.get("title") if role == "passage" else None
    identity = next((record[key] for key in ID_KEYS if record.get(key) is not None), None)
    return None if identity is None else _id(identity, place), str(title or ""), text


def _id(value: object, place: str) -> str:
    try:
        return check_id(value)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def corpus_beside(path: Path) -> Path | None:
    """The corpus for a file of records with document ids: NAME.corpus.*, or corpus.* in the same folder; or None."""
    stem = path.name.split(".")[0]
    folders = [path.parent, path.parent.parent]
    for folder in folders:
        for name in (f"{stem}.corpus", *BESIDE):
            for found in sorted(folder.glob(f"{name}.*")):
                if found.is_file() and files.kind(found) is not None and found != path:
                    return found
            if (folder / name).is_dir():
                return folder / name
    return None


class TextsById:
    """Texts of a corpus by id, on disk. Memory holds sixteen bytes per text.

    The texts are in an unnamed temporary file, which is deleted with this object. Raises ValueError at construction for a
    text without an id, and for a duplicate id.
    """

    def __init__(self, paths: Iterable[Path], role: str = "passage") -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as this object
        keys, ends = array("Q"), array("q")
        position = 0
        with in_temporary_folder():
            for path in paths:
                for place, identity, text in read_texts(path, role):
                    if identity is None:
                        raise ValueError(f"{place}: no id under {', '.join(ID_KEYS)}")
                    position += self._file.write(text.encode())
                    keys.append(_key(identity))
                    ends.append(position)
            self._file.flush()
        self._ends = np.frombuffer(ends, dtype=np.int64) if len(ends) else np.zeros(0, np.int64)
        self._keys = np.frombuffer(keys, dtype=np.uint64) if len(keys) else np.zeros(0, np.uint64)
        self._order = np.argsort(self._keys, kind="stable")
        self._sorted = self._keys[self._order]
        if (repeated := np.flatnonzero(self._sorted[1:] == self._sorted[:-1])).size:
            first, second = self._order[repeated[0]], self._order[repeated[0] + 1]
            raise ValueError(f"texts {int(first) + 1:,} and {int(second) + 1:,} of the corpus have the same id")

    def __len__(self) -> int:
        return len(self._keys)

    def get(self, identity: str) -> str | None:
        """The text of an id, or None."""
        place = int(np.searchsorted(self._sorted, np.uint64(_key(identity))))
        if place == len(self._sorted) or self._sorted[place] != _key(identity):
            return None
        number = int(self._order[place])
        start = int(self._ends[number - 1]) if number else 0
        self._file.seek(start)
        return self._file.read(int(self._ends[number]) - start).decode()


def _key(identity: str) -> int:
    return xxhash.xxh3_64_intdigest(identity.encode())


def nemo_corpora(path: Path, envelope: Mapping[str, object]) -> list[Path]:
    """The Parquet files of the corpora of a NeMo file, whose folders are absolute or relative to the file.

    Raises FileNotFoundError for a missing folder.
    """
    given = envelope.get("corpus")
    found: list[Path] = []
    for item in given if isinstance(given, list) else [given]:
        place = item.get("path") if isinstance(item, Mapping) else item
        if not isinstance(place, str):
            raise FileNotFoundError(f"{path.name}: corpus must be a list of objects with path, got {given!r}")
        folder = path.parent / place
        found.extend(
            file for file in files.find(str(folder), f"{path.name}: corpus") if file.name not in SETTINGS_FILES
        )
    return found


SETTINGS_FILES = ("merlin_metadata.json", "statistics.json", "dataset_info.json", "state.json")


def without_corpora(found: Sequence[Path]) -> list[Path]:
    """The files of a folder that can hold records, without corpora, settings and the side files of rankpo."""
    stems = {file.name.split(".")[0] for file in found}

    def beside(file: Path) -> bool:
        parts = file.name.split(".")
        if file.name in SETTINGS_FILES or (len(parts) > 2 and parts[1] in ("corpus", "meta", "statistics")):
            return True
        return parts[0] in BESIDE and len(stems) > 1

    return [file for file in found if not beside(file)]
