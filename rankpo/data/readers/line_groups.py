"""Groups of lines with equal queries, kept in a temporary file in place of memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from tempfile import SpooledTemporaryFile
from types import TracebackType

import numpy as np
import orjson
import xxhash

from rankpo.storage.atomic import in_temporary_folder

IN_MEMORY = 1 << 25  # Larger content goes to a file of the system's temporary folder.


@dataclass(frozen=True)
class Line:
    """One labelled text of a query. place: its file and line. record: all of its fields."""

    place: str
    query: str
    text: str
    label: float
    record: Mapping[str, object]


class LineGroups:
    """Lines in any order, returned group by group; a line needs 24 bytes of memory.

    Groups are in the order of their first lines, and the lines of a group in the order of `add`. A context manager,
    since the temporary file is removed at its end.
    """

    def __init__(self) -> None:
        # Only this object opens the file, and `__exit__` closes it.
        self._file = SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115
        self._keys = array("Q")  # two halves of the digest of each line's query
        self._ends = array("q")

    def __enter__(self) -> LineGroups:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # Closing writes what is buffered, and nobody needs that any more.
            self._file.close()

    def add(self, line: Line) -> None:
        digest = xxhash.xxh3_128_digest(line.query.encode())
        self._keys.frombytes(digest)
        content = [line.place, line.query, line.text, line.label, line.record]
        with in_temporary_folder():
            self._file.write(orjson.dumps(content, default=str, option=orjson.OPT_NON_STR_KEYS))
        self._ends.append(self._file.tell())

    def __iter__(self) -> Iterator[tuple[Line, list[tuple[str, float]]]]:
        """Yields the first line of each group, and the (text, label) of all its lines."""
        if not self._ends:
            return
        with in_temporary_folder():
            self._file.flush()
        order, bounds = _grouped(np.frombuffer(self._keys, dtype=np.uint64).reshape(-1, 2))
        for start, end in pairwise(bounds):
            lines = [self._read(number) for number in order[start:end].tolist()]
            yield lines[0], [(line.text, line.label) for line in lines]

    def _read(self, number: int) -> Line:
        start = self._ends[number - 1] if number else 0
        self._file.seek(start)
        return Line(*orjson.loads(self._file.read(self._ends[number] - start)))


def _grouped(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the lines [n], group by group, and the bounds of the groups in them [groups + 1].

    keys: [n, 2] digests.
    """
    by_key = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: the lines of a group stay in order
    new = np.ones(len(keys), dtype=bool)
    new[1:] = (keys[by_key[1:]] != keys[by_key[:-1]]).any(axis=1)
    heads = by_key[new]  # the first line of each group
    first = np.empty(len(keys), dtype=np.int64)
    first[by_key] = heads[np.cumsum(new) - 1]
    order = np.argsort(first, kind="stable")
    return order, np.concatenate([[0], np.flatnonzero(np.diff(first[order])) + 1, [len(keys)]])
