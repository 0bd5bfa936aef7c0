"""Several output files of one command, with a note that lists them until the last one is written.

If a full disk or a signal stops a command, its next start finds the note and can overwrite the listed files. Files without
a note are finished outputs, which are not overwritten.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from rankpo.storage.atomic import replace_text


@contextmanager
def written_together(outputs: Collection[Path], first: Path) -> Iterator[None]:
    """Keeps the note in the folder of `first`, one of the outputs, during the block, and after it if the block fails."""
    note = _note(first)
    replace_text(note, json.dumps(sorted(path.name for path in outputs)))
    yield
    note.unlink()


def left_unfinished(path: Path, first: Path) -> bool:
    """Whether `path` is an output of an interrupted command."""
    try:
        names = json.loads(_note(first).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(names, list) and path.parent == first.parent and path.name in names


def _note(first: Path) -> Path:
    return first.with_name(f".{first.name}.unfinished")
