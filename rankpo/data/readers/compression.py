"""Compressed files (gzip and zstd), read as streams, and the errors of truncated files."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import IO, Any, cast


def opened(path: Path) -> IO[bytes]:
    """The content of a file, decompressed if its name ends in .gz or .zst."""
    if path.name.endswith(".gz"):
        return cast("IO[bytes]", gzip.open(path, "rb"))
    if path.name.endswith(".zst"):
        return io.BufferedReader(_Zstandard(path))
    return path.open("rb")


class _Zstandard(io.RawIOBase):
    """The content of a zstd file of one or more frames. Raises EOFError if the last frame is truncated.

    The reader of zstandard treats the end of the file as the end of a frame, so it does not detect truncation.
    """

    def __init__(self, path: Path) -> None:
        import zstandard

        super().__init__()
        self._make = zstandard.ZstdDecompressor
        self._file = path.open("rb")
        self._frame: Any = None
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            block = self._file.read(1 << 17)
            if not block:
                if self._frame is not None:
                    raise EOFError("the file is truncated: it ends within a compressed frame")
                return 0
            self._ready = memoryview(self._decompressed(block))
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _decompressed(self, block: bytes) -> bytes:
        parts = []
        while block:
            frame = self._frame or self._make().decompressobj()
            parts.append(frame.decompress(block))
            self._frame, block = (None, frame.unused_data) if frame.eof else (frame, b"")
        return b"".join(parts)

    def close(self) -> None:
        self._file.close()
        super().close()


def errors(path: Path) -> tuple[type[Exception], ...]:
    """The exceptions that reading a damaged or truncated file can raise."""
    if path.name.endswith(".gz"):
        return (gzip.BadGzipFile, zlib.error, EOFError)
    if path.name.endswith(".zst"):
        import zstandard

        return (zstandard.ZstdError, EOFError)
    return ()
