"""Sliding windows over a ranked list, from its end to its beginning."""

from __future__ import annotations


def windows(start: int, end: int, window: int, stride: int) -> list[tuple[int, int]]:
    """Returns half-open ranges that cover [start, end) from the last to the first, each `stride` above the previous.

    Adjacent windows overlap by window - stride positions, so that a passage can move up. Raises ValueError unless
    1 <= stride <= window.
    """
    if not 1 <= stride <= window:
        raise ValueError(f"stride must be in 1 to window={window}, got {stride}")
    if end <= start:
        return []
    ranges = [(max(start, end - window), end)]
    while ranges[-1][0] > start:
        low, high = ranges[-1]
        ranges.append((max(start, low - stride), high - stride))
    return ranges
