"""JSON Lines files of runs, to which a process appends one object per line."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from rankpo.errors import StorageError

Record = dict[str, Any]


def read_lines(path: Path, needed: Collection[str] = ()) -> list[Record]:
    """Returns the objects of a file, or [] for a missing file.

    An incomplete last line is skipped, because its process was killed or is still writing. needed: keys that every object
    must have. Raises StorageError, with the file and the line, for any other invalid line.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        record = _parsed(line)
        if record is not None and record.keys() >= set(needed):
            records.append(record)
        elif number < len(lines):
            raise StorageError(f"{path}:{number} is damaged; remove that line")
    return records


def _parsed(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
