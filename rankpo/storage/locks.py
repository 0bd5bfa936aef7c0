"""File locks: one process works on a path, while others wait or get an error with the holder of the lock.

The locks use the package filelock, which also supports Windows. On a file system without locks (some network and FUSE
mounts), the existence of a file with the process and host is the lock.
"""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
HOLDER = "holder"  # Suffix of the file with the holder of a lock.
POLL_SECONDS = 0.05


class Busy(RuntimeError):
    """Raised if another process or thread holds the lock."""


@contextmanager
def locked(path: Path, wait: float = -1) -> Iterator[None]:
    """Holds the lock `path`, a file that is not removed. wait: seconds; a negative number has no limit, 0 tries once.

    The system releases a lock when its process ends. Raises Busy if the lock is not free in time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = _acquired(path, wait)
    try:
        yield
    finally:
        lock.release()


def _acquired(path: Path, wait: float) -> BaseFileLock:
    try:
        lock: BaseFileLock = FileLock(path, fallback_to_soft=False)
        try:
            lock.acquire(timeout=wait, poll_interval=POLL_SECONDS)
        except (OSError, NotImplementedError) as error:
            if isinstance(error, Timeout) or (isinstance(error, OSError) and error.errno not in UNSUPPORTED):
                raise
            lock = SoftFileLock(path.with_name(f"{path.name}.soft"))
            lock.acquire(timeout=wait, poll_interval=POLL_SECONDS)
    except Timeout:
        raise Busy(f"{path} is held by {holder(path)}") from None
    return lock


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Like `locked` with one attempt. A second file holds the name of this process for the messages of others."""
    with locked(path, wait=0):
        note = _holder_file(path)
        note.write_text(f"{os.getpid()} {platform.node()}", encoding="utf-8")
        try:
            yield
        finally:
            note.unlink(missing_ok=True)


def holder(path: Path) -> str:
    """The process that holds a lock of `named`, with its host if it is another one, such as "process 71 on node3"."""
    try:
        number, _, host = _holder_file(path).read_text(encoding="utf-8").partition(" ")
    except (OSError, ValueError):
        return "another process"
    if not (number.isascii() and number.isdigit()):
        return "another process"
    return f"process {number}{f' on {host}' if host and host != platform.node() else ''}"


def _holder_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.{HOLDER}")
