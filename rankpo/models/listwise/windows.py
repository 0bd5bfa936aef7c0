"""Sliding windows over a ranked list, from its end to its beginning. rerankers.md 2.7."""

from __future__ import annotations


def windows(start: int, end: int, window: int, stride: int) -> list[tuple[int, int]]:
    """Half-open ranges that cover [start, end), the last one first; each next one lies `stride` higher.

    Neighbours overlap by window - stride places, through which a passage rises. Raises ValueError unless
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
