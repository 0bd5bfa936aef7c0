"""Append-only JSON Lines that survive a kill and can be shared: every line is on disk before it is used.

Lines are ASCII, so that no character of a text, such as a line separator or a lone surrogate, breaks a line.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Generic, TypeVar

from rankpo.storage import locks

RecordT = TypeVar("RecordT", bound=Mapping[str, object])

NUM_CLAIMS = 256  # lock files for keys, by the first byte of their hash
LONGEST_WAIT = 900.0  # Seconds to wait for another process's answer before asking again.


class Records(Generic[RecordT]):
    """Records by key. Opening removes an incomplete last line; `add` returns when the record is on disk.

    The type parameter is the form of a record, which is not checked. shared: several processes have the file open. Then
    each write holds a lock, `fresh` reads the records of other processes, and `claimed` prevents that two processes
    create the same record.
    """

    def __init__(self, path: Path, key: str, *, shared: bool = False) -> None:
        self.path, self.key, self.shared = path, key, shared
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b", buffering=0)
        self._records: dict[str, RecordT] = {}
        self._place = self._line = 0  # bytes and lines read
        with self._alone():
            self._mend()
            self._read()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Excludes other threads and processes from writing."""
        with self._lock, ExitStack() as stack:
            if self.shared:
                stack.enter_context(locks.locked(self.path.with_name(f"{self.path.name}.lock")))
            yield

    def _mend(self) -> int:
        """Removes an incomplete last line; its writer is dead, since it would hold the lock. Returns the file's size."""
        size = end = self._file.seek(0, os.SEEK_END)
        step = 1  # The last byte nearly always ends a line.
        while end > 0:
            start = max(0, end - step)
            self._file.seek(start)
            found = self._file.read(end - start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end, step = start, 1 << 16
        if end < size:
            self._file.truncate(end)
            os.fsync(self._file.fileno())
        return end

    def _read(self) -> None:
        """Reads the complete lines after the last read position."""
        self._file.seek(self._place)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        for line in content[:whole].split(b"\n")[:-1]:
            self._line += 1
            try:
                record = json.loads(line)
                self._records[str(record[self.key])] = record
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise ValueError(
                    f"{self.path}:{self._line}: not a record with {self.key!r}; remove the line"
                ) from error
        self._place += whole

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[RecordT]:
        return iter(self._records.values())

    def get(self, key: str) -> RecordT | None:
        return self._records.get(key)

    def fresh(self, key: str) -> RecordT | None:
        """`get`, after reading what other processes have added."""
        with self._lock:
            if os.fstat(self._file.fileno()).st_size > self._place:
                self._read()
        return self._records.get(key)

    def add(self, record: RecordT) -> None:
        """Appends a record. Raises OSError if the disk is full; the file is then unchanged."""
        line = json.dumps(record).encode() + b"\n"
        with self._alone():
            before = self._mend()
            try:
                if self._file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
                os.fsync(self._file.fileno())
            except OSError:
                with suppress(OSError):
                    self._file.truncate(before)
                raise
            self._read()

    @contextmanager
    def claimed(self, key: str) -> Iterator[None]:
        """Holds a key against other threads and processes that would make the same record."""
        number = int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) % NUM_CLAIMS
        path = self.path.with_name(f"{self.path.name}.claims") / f"{number:02x}.lock"
        with ExitStack() as stack:
            if self.shared:
                with suppress(locks.Busy):
                    stack.enter_context(locks.locked(path, LONGEST_WAIT))
            yield

    def close(self) -> None:
        self._file.close()


def digest(request: Mapping[str, object]) -> str:
    """SHA-256 of a request: model, messages and parameters."""
    text = json.dumps(request, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
