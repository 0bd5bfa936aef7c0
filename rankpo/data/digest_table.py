"""Table of digests: which of millions of texts were seen before, at 20 bytes each instead of a dictionary's 180."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DIGEST_BYTES = 16


class DigestTable:
    """Numbers by 128-bit digest, looked up and added many at a time.

    The digests stand in sorted arrays whose sizes at least double, so that n of them cost O(n log n) to add.
    """

    def __init__(self) -> None:
        self._levels: list[
            tuple[np.ndarray, np.ndarray, np.ndarray]
        ] = []  # Sorted first halves, second halves, numbers.

    def find(self, digests: np.ndarray) -> np.ndarray:
        """[n] int64 numbers, -1 for new digests. digests: [n, 2] uint64."""
        found = np.full(len(digests), -1, dtype=np.int64)
        for first, second, numbers in self._levels:
            place = np.searchsorted(first, digests[:, 0])
            inside = np.minimum(place, len(first) - 1)
            alike = (first[inside] == digests[:, 0]) & (place < len(first))
            same = alike & (second[inside] == digests[:, 1])
            found[same] = numbers[inside[same]]
            for row in np.flatnonzero(alike & ~same):  # Another digest with the same first half.
                end = np.searchsorted(first, digests[row, 0], side="right")
                equal = np.flatnonzero(second[place[row] : end] == digests[row, 1])
                if len(equal):
                    found[row] = numbers[place[row] + equal[0]]
        return found

    def add(self, digests: np.ndarray, numbers: np.ndarray) -> None:
        """Adds digests that are not in the table. digests: [n, 2] uint64. numbers: [n]."""
        if not len(digests):
            return
        first, second, values = digests[:, 0], digests[:, 1], numbers.astype(np.int32)
        while self._levels and len(self._levels[-1][0]) < 2 * len(first):
            before = self._levels.pop()
            first, second, values = (np.concatenate(pair) for pair in zip(before, (first, second, values), strict=True))
        order = np.argsort(first, kind="stable")
        self._levels.append((first[order], second[order], values[order]))


def digest_array(digests: Sequence[bytes]) -> np.ndarray:
    """[n, 2] uint64 halves of 16-byte digests."""
    return np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 2)
