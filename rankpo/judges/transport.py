"""HTTP calls with a deadline for the whole exchange, a limit on the answer's bytes, and a single exception type."""

from __future__ import annotations

import asyncio
import math
import os
import re
import threading
import time
import zlib
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import httpx

MAX_BYTES = 2 << 20  # of an answer, as sent and unpacked: about half a million words
LONGEST_PAUSE = 120.0
CLOSING_SECONDS = 10.0
SECONDS = re.compile(r"\s*([0-9]{1,9})(\.[0-9]{1,9})?\s*")
T = TypeVar("T")


class NoAnswer(Exception):
    """Raised for a late, interrupted, too long or undecodable answer."""


@dataclass(frozen=True)
class Answer:
    """content: the body, unpacked. retry_after: seconds in the Retry-After header, or None."""

    status: int
    content: bytes
    retry_after: float | None


class Transport:
    """Posts JSON from any thread. timeout: seconds of one exchange, from the connection to the last byte."""

    def __init__(self, connections: int, timeout: float) -> None:
        self.connections, self.timeout = connections, timeout
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: httpx.AsyncClient | None = None

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Returns the answer. Raises NoAnswer for every failure."""
        try:
            return self._run(self._post(url, body, headers))
        except NoAnswer:
            raise
        except TimeoutError:
            raise NoAnswer(f"no answer within {self.timeout:g} s") from None
        except Exception as error:  # Libraries raise different exceptions for violations of the protocol.
            raise NoAnswer(f"connection to {url}: {reason(error)}") from error

    def _run(self, work: Coroutine[object, object, T]) -> T:
        """Waits for work in the event loop, which runs in a separate thread, so that the work can be cancelled."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, daemon=True, name="judge calls").start()
        late = self.timeout + CLOSING_SECONDS  # The work ends earlier unless a library blocks the loop.
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(late)

    def close(self) -> None:
        """Closes connections and ends the thread; the next call would open them again."""
        with self._lock:
            loop, client = self._loop, self._client
            self._loop = self._client = None
        if loop is not None:
            if client is not None:
                asyncio.run_coroutine_threadsafe(client.aclose(), loop).result(CLOSING_SECONDS)
            loop.call_soon_threadsafe(loop.stop)

    async def _post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        import httpx

        if self._client is None:
            limits = httpx.Limits(max_connections=self.connections)
            self._client = httpx.AsyncClient(timeout=None, limits=limits)
        sent = {"Content-Type": "application/json", "Accept-Encoding": "gzip", **headers}
        async with asyncio.timeout(self.timeout), self._client.stream("POST", url, content=body, headers=sent) as got:
            content = bytearray()
            async for part in got.aiter_raw():
                content += part
                if len(content) > MAX_BYTES:
                    raise NoAnswer(f"the answer is longer than {MAX_BYTES} bytes")
            unpacked = unpack(bytes(content), got.headers.get("content-encoding", ""))
            return Answer(got.status_code, unpacked, retry_after(got.headers.get("retry-after")))


def reason(error: BaseException) -> str:
    """The innermost cause that is an error of the system, such as "Connection refused", else the error's message."""
    seen: BaseException | None = error
    while seen is not None:
        inner = seen.exceptions[0] if isinstance(seen, BaseExceptionGroup) else seen
        if isinstance(inner, OSError) and inner.errno is not None:
            return os.strerror(inner.errno) if inner.errno > 0 else str(inner.strerror)  # below 0: of the name service
        seen = inner.__cause__ or inner.__context__
    return f"{error or 'no words'} ({type(error).__name__})"


def unpack(content: bytes, encoding: str) -> bytes:
    """The body without its content encoding, never longer than MAX_BYTES. Raises NoAnswer."""
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return content
    if name not in ("gzip", "x-gzip", "deflate"):
        raise NoAnswer(f"the answer has the content encoding {encoding[:40]!r}, which was not requested")
    unpacker = zlib.decompressobj(wbits=47)  # gzip or zlib, by the first bytes
    try:
        plain = unpacker.decompress(content, MAX_BYTES + 1)
    except zlib.error as error:
        raise NoAnswer(f"the answer is not {name}: {error}") from error
    if len(plain) > MAX_BYTES:
        raise NoAnswer(f"the answer is longer than {MAX_BYTES} bytes")
    if not unpacker.eof:
        raise NoAnswer(f"the answer's {name} breaks off")
    return plain


def retry_after(value: str | None) -> float | None:
    """Returns the seconds in a Retry-After header (a number or a date), at most LONGEST_PAUSE; None for other values."""
    if value is None:
        return None
    if number := SECONDS.fullmatch(value):
        return min(LONGEST_PAUSE, float(number.group()))
    try:
        seconds = parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return min(LONGEST_PAUSE, max(0.0, seconds)) if math.isfinite(seconds) else None
