"""Several files that belong together: a note names them until the last one is written.

A command that stopped half-way, on a full disk or by a kill, finds the note at its next start and may write its own
files again; files without a note are somebody's finished work.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from rankpo.storage.atomic import replace_text


@contextmanager
def written_together(outputs: Collection[Path], first: Path) -> Iterator[None]:
    """Keeps the note beside `first`, one of the outputs, while the block writes them; a block that fails leaves it."""
    note = _note(first)
    replace_text(note, json.dumps(sorted(path.name for path in outputs)))
    yield
    note.unlink()


def left_unfinished(path: Path, first: Path) -> bool:
    """Whether `path` is an output of a command that did not come to its end."""
    try:
        names = json.loads(_note(first).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(names, list) and path.parent == first.parent and path.name in names


def _note(first: Path) -> Path:
    return first.with_name(f".{first.name}.unfinished")
