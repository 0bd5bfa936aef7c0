"""Table of digests to find duplicates among millions of texts. A text takes 20 bytes; a dictionary would take 180."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DIGEST_BYTES = 16
Columns = list[np.ndarray]  # First halves, second halves and numbers of digests, sorted by the first half.


class DigestTable:
    """Maps 128-bit digests to numbers. Each call looks up or adds a batch of digests.

    Digests are stored in several sorted arrays, each at least twice as large as the next one. Adding a batch merges
    the arrays that are too small, so few arrays need to be searched and each digest is copied O(log n) times.
    """

    def __init__(self) -> None:
        self._levels: list[Columns] = []

    def find(self, digests: np.ndarray) -> np.ndarray:
        """Returns the number of each digest as [n] int64, -1 if the table lacks it. digests: [n, 2] uint64."""
        found = np.full(len(digests), -1, dtype=np.int64)
        for first, second, numbers in self._levels:
            place = np.searchsorted(first, digests[:, 0])
            inside = np.minimum(place, len(first) - 1)
            alike = (first[inside] == digests[:, 0]) & (place < len(first))
            same = alike & (second[inside] == digests[:, 1])
            found[same] = numbers[inside[same]]
            # Here, a different digest has the same first half. The loop searches all digests with this half.
            for row in np.flatnonzero(alike & ~same):
                end = np.searchsorted(first, digests[row, 0], side="right")
                equal = np.flatnonzero(second[place[row] : end] == digests[row, 1])
                if len(equal):
                    found[row] = numbers[place[row] + equal[0]]
        return found

    def add(self, digests: np.ndarray, numbers: np.ndarray) -> None:
        """Adds new digests; the table must not contain them yet. digests: [n, 2] uint64. numbers: [n]."""
        if not len(digests):
            return
        parts: list[Columns] = [[digests[:, 0], digests[:, 1], numbers.astype(np.int32)]]
        size = len(digests)
        while self._levels and len(self._levels[-1][0]) < 2 * size:
            parts.insert(0, self._levels.pop())
            size += len(parts[0][0])
        order = np.argsort(np.concatenate([part[0] for part in parts]), kind="stable")
        merged: Columns = []
        # A column at a time, so that a table of millions of digests is never in memory twice.
        for column in range(len(parts[0])):
            merged.append(np.concatenate([part[column] for part in parts])[order])
            for part in parts:
                part[column] = merged[0][:0]
        self._levels.append(merged)


def digest_array(digests: Sequence[bytes]) -> np.ndarray:
    """Converts 16-byte digests to an [n, 2] uint64 array of their two halves."""
    return np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 2)
