"""Files that appear whole or not at all: written beside their place, then renamed into it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place to write to, which takes the name `path` once the block ends well; before, what stood there stays.

    Makes the folder. The place is this process's own: several may write the same file at once, and the last one wins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_text(path: Path, content: str) -> None:
    """Writes a text as UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
