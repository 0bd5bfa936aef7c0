"""Fusion of several rankings of a query, by reciprocal ranks or by scores scaled to 0..1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

METHODS = ("reciprocal_rank", "minmax")
RANK_OFFSET = 60  # Cormack, Clarke, Büttcher, SIGIR 2009, section 2

Ranking = tuple[np.ndarray, np.ndarray]  # document numbers and scores, best first


def fuse(
    rankings: Sequence[Ranking], weights: Sequence[float], method: str = "reciprocal_rank", offset: float = RANK_OFFSET
) -> Ranking:
    """Numbers [n] and scores [n] of the union, best first, ties by ascending number.

    reciprocal_rank: Σ w/(offset + rank), ranks from 1 (Cormack et al. 2009, eq. 1). minmax: Σ w·(s - low)/(high - low)
    over each ranking; a ranking of equal scores gives its documents 1, and a ranking gives 0 to documents that it does
    not contain. Raises ValueError for another method.
    """
    if method not in METHODS:
        raise ValueError(f"fusion must be one of {', '.join(METHODS)}, got {method!r}")
    total: dict[int, float] = {}
    for (numbers, scores), weight in zip(rankings, weights, strict=True):
        if method == "reciprocal_rank":
            parts = 1 / (offset + np.arange(1, len(numbers) + 1))
        else:
            parts = _scaled(np.asarray(scores, dtype=np.float64))
        for number, part in zip(numbers.tolist(), parts.tolist(), strict=True):
            total[number] = total.get(number, 0.0) + weight * part
    found = np.array(sorted(total), dtype=np.int64)
    fused = np.array([total[number] for number in found.tolist()], dtype=np.float64)
    order = np.argsort(-fused, kind="stable")
    return found[order], fused[order]


def _scaled(scores: np.ndarray) -> np.ndarray:
    if not len(scores):
        return scores
    low, high = scores.min(), scores.max()
    return np.ones_like(scores) if high == low else (scores - low) / (high - low)
