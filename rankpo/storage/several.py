"""A note that lists the output files of a command while the command writes them.

If a full disk or a signal stops the command, its next start finds the note and can overwrite the listed files. Files
without a note are finished outputs, so the next start must not overwrite them by default.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from rankpo.storage.atomic import replace_text


@contextmanager
def written_together(outputs: Collection[Path], first: Path) -> Iterator[None]:
    """Writes the note before the block, and removes it after the block. The note stays if the block raises an error.

    first: one of the outputs. Its folder and name determine the path of the note.
    """
    note = _note(first)
    replace_text(note, json.dumps(sorted(path.name for path in outputs)))
    yield
    note.unlink()


def left_unfinished(path: Path, first: Path) -> bool:
    """Whether `path` is an output of an interrupted command, according to the note beside `first`."""
    try:
        names = json.loads(_note(first).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(names, list) and path.parent == first.parent and path.name in names


def _note(first: Path) -> Path:
    return first.with_name(f".{first.name}.unfinished")
