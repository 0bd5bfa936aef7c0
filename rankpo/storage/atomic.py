"""Files that appear whole or not at all: written beside their place, then renamed into it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
SHORT_WRITE = re.compile(r"^\d+ requested and \d+ written$")  # of numpy's arrays


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place to write to, which takes the name `path` once the block ends well; before, what stood there stays.

    Makes the folder. The place is this process's own: several may write the same file at once, and the last one wins.
    Raises OSError (ENOSPC) where the disk is full, in whatever words a library has said it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    except Exception as error:
        if disk_is_full(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def disk_is_full(error: Exception) -> bool:
    """Whether that is why a file could not be written; safetensors and numpy say it in words only."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in FULL
    words = str(error)
    return any(f"(os error {number})" in words for number in FULL) or bool(SHORT_WRITE.search(words))


def replace_text(path: Path, content: str) -> None:
    """Writes a text as UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
