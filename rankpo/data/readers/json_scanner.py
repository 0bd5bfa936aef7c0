"""Scanner of JSON text that is read block by block, for arrays that are larger than memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO

BLOCK = 1 << 20  # bytes
# A whole string, the quotation mark of a string that the buffer does not end, or a letter of structure.
TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{}:,]', re.DOTALL)
OPENING, CLOSING = b"[{", b"]}"
QUOTE, COMMA, COLON, ARRAY_START, ARRAY_END, OBJECT_END = b'",:[]}'

Token = tuple[int, int, int]  # the place of its first byte, the place behind it, its first byte


class Scanner:
    """The tokens of a file and the bytes between them.

    Memory holds the bytes from the last call of `keep` on. Numbers and words such as `true` are no tokens: whoever
    parses the bytes of a value checks them.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self._buffer = b""
        self._base = 0  # the place of the buffer's first byte in the file
        self._kept = 0

    def keep(self, place: int) -> None:
        """Allows the scanner to drop all bytes before `place`."""
        self._kept = place

    def between(self, start: int, end: int) -> bytes:
        """The bytes of a range that begins at the last kept place or behind it."""
        return self._buffer[start - self._base : end - self._base]

    def since_kept(self, end: int) -> bytes:
        """The bytes from the last kept place to `end`."""
        return self.between(self._kept, end)

    def ends(self) -> bool:
        """Whether only blanks follow the last kept place. No token can be read after this call."""
        rest = self._buffer[self._kept - self._base :]
        while not rest.strip():
            rest = self.file.read(BLOCK)
            if not rest:
                return True
        return False

    def tokens(self) -> Iterator[Token]:
        """Yields every string and of every bracket, colon and comma outside of strings."""
        place = 0
        while True:
            for match in TOKEN.finditer(self._buffer, place):
                start, end = match.span()
                letter = self._buffer[start]
                if letter == QUOTE and end == start + 1:
                    place = start
                    break
                place = end
                yield self._base + start, self._base + end, letter
            else:
                place = len(self._buffer)
            # A buffer that holds the beginning of a long string is doubled, so that it is searched O(log n) times.
            more = self.file.read(max(BLOCK, len(self._buffer)))
            if not more:
                return
            dropped = max(0, min(self._kept - self._base, place))
            self._buffer = self._buffer[dropped:] + more
            self._base += dropped
            place -= dropped


def elements(scanner: Scanner, tokens: Iterator[Token], start: int) -> Iterator[bytes]:
    """Yields the bytes of every element of an array, whose first byte behind the bracket is at `start`.

    The place behind the closing bracket is kept last. Raises ValueError if the array is not closed. A missing element,
    as in `[1,]`, is yielded as b"".
    """
    depth, first = 0, True
    scanner.keep(start)
    for place, end, letter in tokens:
        if letter in OPENING:
            depth += 1
        elif letter in CLOSING and depth:
            depth -= 1
        elif not depth and letter in b",]}":
            element = scanner.between(start, place).strip()
            if element or not first or letter == COMMA:
                yield element
            start, first = end, False
            scanner.keep(start)
            if letter == ARRAY_END:
                return
            if letter != COMMA:
                break
    raise ValueError("an array is not closed")
