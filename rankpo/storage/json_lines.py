"""JSON Lines of runs, which a process appends to: one object a line."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from rankpo.errors import StorageError

Record = dict[str, Any]


def read_lines(path: Path, needed: Collection[str] = ()) -> list[Record]:
    """Returns the objects of a file; [] where there is none.

    A last line without its end is left out: its process was killed, or still writes it. needed: keys that every object
    must have. Raises StorageError, which names the file and the line, for any other line that is not such an object.
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
