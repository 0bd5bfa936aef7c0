"""JSON files of runs and caches, with a checksum that detects truncated and changed files.

A damaged cache is computed again; a damaged file of a run raises an error. Files of earlier versions have no checksum and
are read without a check.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import xxhash

from rankpo.errors import StorageError
from rankpo.storage.atomic import replace_text

CHECKSUM = "checksum"  # The last key of a file, reserved.
HINT = "restore it from a copy, or remove the folder and start again"


def write_json(path: Path, values: Mapping[str, object], indent: int | None = 1) -> None:
    """Writes an object atomically as ASCII JSON, with its checksum as the last key."""
    replace_text(path, dumps(values, indent))


def dumps(values: Mapping[str, object], indent: int | None = 1) -> str:
    """The text of the file that `write_json` writes. Raises ValueError if the object has the key of the checksum."""
    if CHECKSUM in values:
        raise ValueError(f"the key {CHECKSUM!r} is reserved for the checksum of the file")
    return json.dumps({**values, CHECKSUM: _digest(values)}, indent=indent) + "\n"


def read_json(path: Path, hint: str = HINT) -> dict[str, Any]:
    """The object that `write_json` wrote, without its checksum.

    Raises StorageError, with the file's name and `hint`, for a file that cannot be read, is not a JSON object, or has
    changed since it was written. Raises FileNotFoundError for a missing file.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise StorageError(f"{path} is damaged ({_first_line(error)}); {hint}") from error
    if not isinstance(values, dict):
        raise StorageError(f"{path} is damaged (it holds a {type(values).__name__}, not an object); {hint}")
    expected = values.pop(CHECKSUM, None)
    if expected is not None and expected != _digest(values):
        raise StorageError(f"{path} is damaged (its content has changed since it was written); {hint}")
    return values


def read_cache(path: Path, say: Callable[[str], None]) -> dict[str, object] | None:
    """Returns the object in a cache file, or None if the file is missing or, with a notice, damaged."""
    try:
        return read_json(path, "it is made again")
    except FileNotFoundError:
        return None
    except StorageError as error:
        say(str(error))
        return None


def _digest(values: Mapping[str, object]) -> str:
    """The xxh3-128 digest of the values as JSON, which does not depend on indentation and the order of keys."""
    return xxhash.xxh3_128_hexdigest(json.dumps(values, sort_keys=True, separators=(",", ":")).encode())


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
