"""Filters of negative candidates, as pure functions of texts, scores and ranks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rankpo.data.random_keys import mix
from rankpo.data.readers.fields import normal

SHINGLE = 5  # Characters, so that scripts without spaces are supported.
SKETCH = 1024  # buckets of a sketch
EMPTY = np.uint32(2**32 - 1)


def positive_score(scores: np.ndarray, against: str) -> float:
    """Returns the score for margins. NaN without positives, or if one of them has no score."""
    if not len(scores):
        return float("nan")
    return float(getattr(scores, against)())  # min, max or mean


def ceiling(positive: float, absolute_margin: float | None, relative_margin: float | None) -> float:
    """Returns the largest allowed score of a negative for a positive of score P: min(P - m, P - r·abs(P)).

    The formula uses abs(P), since logits may be negative: for P = -0.2 and r = .05 it gives -0.21, while P·(1 - r) in
    https://arxiv.org/abs/2407.15831 section 3 gives -0.19, above P. Infinite without a margin.
    """
    bounds = [float("inf")]
    if absolute_margin is not None:
        bounds.append(positive - absolute_margin)
    if relative_margin is not None:
        bounds.append(positive - relative_margin * abs(positive))
    return float(np.min(bounds))  # np.min keeps NaN, the value for a positive without a score.


def below(scores: np.ndarray, bound: float | None) -> np.ndarray:
    """[n] whether each score is at most the bound; True without a bound. NaN scores fail."""
    if bound is None or bound == float("inf"):
        return np.ones(len(scores), dtype=bool)
    return scores <= bound


def above(scores: np.ndarray, bound: float | None) -> np.ndarray:
    """[n] whether each score is at least the bound; True without a bound."""
    return np.ones(len(scores), dtype=bool) if bound is None else scores >= bound


def in_range(ranks: np.ndarray, low: int, high: int | None) -> np.ndarray:
    """[n] whether low <= rank < high; zero-based."""
    return (ranks >= low) & (ranks < (np.iinfo(np.int64).max if high is None else high))


def sketch(text: str) -> np.ndarray:
    """[SKETCH] uint32: the smallest hash in each of 1,024 buckets of the text's runs of five characters, lower-cased.

    One permutation hashing: Li, Owen, Zhang, NIPS 2012 (https://arxiv.org/abs/1208.1259). A text shorter
    than five characters is one run. Empty buckets have the value EMPTY.
    """
    flat = normal(text).lower().ljust(SHINGLE, "\0")
    letters = np.frombuffer(flat.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    count = len(letters) - SHINGLE + 1
    hashes = np.zeros(count, dtype=np.uint64)
    for place in range(SHINGLE):
        hashes = mix(hashes + letters[place : place + count] + np.uint64(1))
    smallest = np.full(SKETCH, EMPTY, dtype=np.uint32)
    np.minimum.at(smallest, (hashes % np.uint64(SKETCH)).astype(np.int64), (hashes >> np.uint64(32)).astype(np.uint32))
    return smallest


def jaccard(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns an unbiased estimate of the Jaccard similarity from sketches [..., SKETCH]; 1 for equal texts.

    It is the number of equal buckets over the number of buckets that are non-empty in at least one sketch, in the paper
    N_mat/(k - N_emp). The standard error is at most 0.5/√1024 = 0.016, and close to 0 for texts of few runs.
    """
    used = (first != EMPTY) | (second != EMPTY)
    return ((first == second) & used).sum(-1) / used.sum(-1)


def near_duplicates(candidates: Sequence[np.ndarray], known: Sequence[np.ndarray], threshold: float) -> np.ndarray:
    """[n] whether the similarity to a known text, or to an earlier kept candidate, reaches the threshold."""
    kept = np.empty((len(known) + len(candidates), SKETCH), dtype=np.uint32)
    count = len(known)
    if count:
        kept[:count] = np.stack(list(known))
    found = np.zeros(len(candidates), dtype=bool)
    for place, candidate in enumerate(candidates):
        found[place] = bool((jaccard(candidate, kept[:count]) >= threshold).any())
        if not found[place]:
            kept[count] = candidate
            count += 1
    return found
