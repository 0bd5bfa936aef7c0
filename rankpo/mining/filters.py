"""Which candidates may be negatives: pure functions of texts, scores and ranks. Numbers: interop.md 3.1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rankpo.data.random_keys import mix
from rankpo.data.sources import normal

SHINGLE = 5  # characters: also cuts scripts without spaces
SKETCH = 1024  # shingles compared of one text


def positive_score(scores: np.ndarray, against: str) -> float:
    """The score that margins are measured from. NaN without positives, or where one of them has no score."""
    if not len(scores):
        return float("nan")
    return float(getattr(scores, against)())  # min, max or mean


def ceiling(positive: float, absolute_margin: float | None, relative_margin: float | None) -> float:
    """The largest score a negative may have beside a positive of score P: min(P - m, P - r·abs(P)).

    abs, since logits may be negative: of P = -0.2 with r = .05 it gives -0.21, where the product P·(1 - r) of
    https://arxiv.org/abs/2407.15831 section 3 gives the laxer -0.19. Infinite without a margin.
    """
    bounds = [float("inf")]
    if absolute_margin is not None:
        bounds.append(positive - absolute_margin)
    if relative_margin is not None:
        bounds.append(positive - relative_margin * abs(positive))
    return float(np.min(bounds))  # NaN, where the positive has no score, wins


def below(scores: np.ndarray, bound: float | None) -> np.ndarray:
    """[n] whether each score is at most the bound; True without one. An unknown score never passes a bound."""
    if bound is None or bound == float("inf"):
        return np.ones(len(scores), dtype=bool)
    return scores <= bound


def above(scores: np.ndarray, bound: float | None) -> np.ndarray:
    """[n] whether each score is at least the bound; True without one."""
    return np.ones(len(scores), dtype=bool) if bound is None else scores >= bound


def in_range(ranks: np.ndarray, low: int, high: int | None) -> np.ndarray:
    """[n] whether low <= rank < high; zero-based."""
    return (ranks >= low) & (ranks < (np.iinfo(np.int64).max if high is None else high))


@dataclass(frozen=True)
class Shingles:
    """A text's distinct runs of five characters. hashes: the `SKETCH` smallest, sorted, uint64. size: how many in all."""

    hashes: np.ndarray
    size: int


def shingles(text: str) -> Shingles:
    """Of the lower-cased text; of a text shorter than five characters, the text itself."""
    flat = normal(text).lower().ljust(SHINGLE, "\0")
    letters = np.frombuffer(flat.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    count = len(letters) - SHINGLE + 1
    mixed = np.zeros(count, dtype=np.uint64)
    for place in range(SHINGLE):
        mixed = mix(mixed + letters[place : place + count] + np.uint64(1))
    hashes = np.unique(mixed)
    return Shingles(hashes[:SKETCH], len(hashes))


def jaccard(first: Shingles, second: Shingles) -> float:
    """Shared over all; 1 for equal sets. Of texts with more than `SKETCH` shingles, an unbiased estimate.

    The share among the smallest hashes of the union (Broder 1997, "On the resemblance and containment of
    documents", section 4); its standard error is at most 0.5/√1024 = 0.016.
    """
    union = np.union1d(first.hashes, second.hashes)
    if max(first.size, second.size) > SKETCH:
        union = union[:SKETCH]
    shared = np.isin(union, first.hashes, assume_unique=True) & np.isin(union, second.hashes, assume_unique=True)
    return float(shared.mean())


def near_duplicates(candidates: Sequence[Shingles], known: Sequence[Shingles], threshold: float) -> np.ndarray:
    """[n] whether a candidate's Jaccard with a known text, or with a candidate that stays before it, reaches it."""
    kept = list(known)
    found = np.zeros(len(candidates), dtype=bool)
    for place, candidate in enumerate(candidates):
        found[place] = any(_similar(candidate, other, threshold) for other in kept)
        if not found[place]:
            kept.append(candidate)
    return found


def _similar(first: Shingles, second: Shingles, threshold: float) -> bool:
    # the smaller over the larger is the most that the Jaccard can be: most pairs need no intersection
    if min(first.size, second.size) < threshold * max(first.size, second.size):
        return False
    return jaccard(first, second) >= threshold
