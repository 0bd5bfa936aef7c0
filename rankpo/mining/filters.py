"""Which candidates may be negatives: pure functions of texts, scores and ranks. Numbers: interop.md 3.1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rankpo.data.sources import normal

SHINGLE = 5  # characters: also cuts scripts without spaces


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


def shingles(text: str) -> frozenset[str]:
    """Every run of five characters of the lower-cased text; the text itself if it is shorter."""
    flat = normal(text).lower()
    return frozenset(flat[place : place + SHINGLE] for place in range(max(1, len(flat) - SHINGLE + 1)))


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """Shared over all. 1 for equal sets."""
    shared = len(first & second)
    return shared / (len(first) + len(second) - shared)


def near_duplicates(
    candidates: Sequence[frozenset[str]], known: Sequence[frozenset[str]], threshold: float
) -> np.ndarray:
    """[n] whether a candidate's Jaccard with a known text, or with a candidate that stays before it, reaches it."""
    kept = list(known)
    found = np.zeros(len(candidates), dtype=bool)
    for place, candidate in enumerate(candidates):
        found[place] = any(_similar(candidate, other, threshold) for other in kept)
        if not found[place]:
            kept.append(candidate)
    return found


def _similar(first: frozenset[str], second: frozenset[str], threshold: float) -> bool:
    # the smaller over the larger is the most that the Jaccard can be: most pairs need no intersection
    if min(len(first), len(second)) < threshold * max(len(first), len(second)):
        return False
    return jaccard(first, second) >= threshold
