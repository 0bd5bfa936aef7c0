"""Append-only JSON Lines that survive a kill at any moment: every line is on the disk before it counts."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class Records:
    """Records by key. Opening removes a last line that was torn by a kill; adding returns once it is on the disk."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        self._records = dict(self._read())

    def _read(self) -> Iterator[tuple[str, dict[str, Any]]]:
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            self._file.truncate(whole)
            os.fsync(self._file.fileno())
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                record = json.loads(line)
                yield str(record[self.key]), record
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{self.path}:{number}: not a record with {self.key!r}; remove the line") from error

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._records.values())

    def get(self, key: str) -> dict[str, Any] | None:
        return self._records.get(key)

    def add(self, record: Mapping[str, Any]) -> None:
        """Raises OSError where the disk is full; the record then does not count."""
        line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._records[str(record[self.key])] = dict(record)

    def close(self) -> None:
        self._file.close()


def digest(request: Mapping[str, Any]) -> str:
    """SHA-256 of a request: model, messages and parameters."""
    return hashlib.sha256(json.dumps(request, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
