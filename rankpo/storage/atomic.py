"""Atomic file writes, by a temporary file in the same folder and a rename."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir

from rankpo.errors import StorageError

UNWRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SHORT_WRITE = re.compile(r"^\d+ requested and \d+ written$")  # numpy's message, which lacks the errno.
SPARE_BYTES = 1 << 20


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path, which is renamed to `path` if the block succeeds. Until then, `path` is unchanged.

    The folder is created. Before the rename, the file is synced to disk and gets the mode of the umask. Each process has
    its own temporary path; if several write the same file at once, the last one wins.
    Raises OSError, with the errno of `unwritten`, if the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        temporary.chmod(mode)  # safetensors ignores the umask and writes files readable only by their owner.
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except Exception as error:
        if number := unwritten(error, path.parent):
            raise OSError(number, os.strerror(number), str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Calls fsync on a file or folder; Windows cannot do so for folders, and needs files to be open for writing."""
    windows = os.name == "nt"
    if windows and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unwritten(error: Exception, folder: Path) -> int | None:
    """The errno of a failed write without space: ENOSPC, EDQUOT, or EFBIG for a limit of the file size; else None.

    The errors of safetensors and numpy hold it in the message only. folder: the folder of the file.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in UNWRITTEN else None
    words = str(error)
    named = next((number for number in UNWRITTEN if f"(os error {number})" in words), None)
    if named is None and SHORT_WRITE.search(words):
        return errno.EFBIG if _has_size_limit() and shutil.disk_usage(folder).free > SPARE_BYTES else errno.ENOSPC
    return named


def room(number: int) -> str:
    """Describes the exhausted resource of an errno of `unwritten`."""
    return {
        errno.EFBIG: "the file exceeds the size limit of this process (ulimit -f)",
        errno.EDQUOT: "the disk quota is used up",
    }.get(number, "the disk is full")


def remedy(number: int) -> str:
    """Returns advice for an errno of `unwritten`."""
    return "raise the limit" if number == errno.EFBIG else "free some of it"


def _has_size_limit() -> bool:
    try:
        import resource
    except ImportError:  # Windows has no such limit.
        return False
    return resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY


def replace_text(path: Path, content: str) -> None:
    """Writes a text as UTF-8 atomically."""
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


@contextmanager
def in_temporary_folder() -> Iterator[None]:
    """Raises StorageError, with the folder and the remedy, if a temporary file of the block finds no room."""
    try:
        yield
    except OSError as error:
        if number := unwritten(error, Path(gettempdir())):
            raise StorageError(f"{gettempdir()}: {room(number)}; set TMPDIR to a folder with more room") from error
        raise
