"""Statistics of mining: counts by step, scores of positives and negatives, and the hardest negatives."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from rankpo.mining.data import MiningData
from rankpo.mining.pipeline import Mined, Negative
from rankpo.mining.summary import Hardest, Histogram, Statistics

BINS = 20
SHOWN = 20  # hardest negatives
SHOWN_CHARACTERS = 300
QUANTILES = (0.05, 0.5, 0.95)


def statistics(data: MiningData, mined: Sequence[Mined], num_negatives: int) -> Statistics:
    """Returns all numbers of one variant, for JSON. Unknown scores are excluded from means and quantiles.

    gap: the score for margins minus the negative's score. above_weakest_positive: share of the scored
    negatives above their query's lowest positive. uses: of one text as a negative.
    """
    positives = _finite(np.concatenate([np.zeros(0), *(item.positives for item in mined)]))
    scores = _of_negatives(mined, lambda item, negative: negative.score)
    margins = _of_negatives(mined, lambda item, negative: item.margin_from)
    weakest = _of_negatives(mined, lambda item, negative: item.positives.min() if len(item.positives) else np.nan)
    ranks = _of_negatives(mined, lambda item, negative: np.nan if negative.rank is None else negative.rank)
    uses = Counter(negative.number for item in mined for negative in item.negatives)
    negatives, known = _finite(scores), np.isfinite(scores) & np.isfinite(weakest)
    removed: Counter[str] = Counter()
    for item in mined:
        removed.update(item.removed)
    return {
        "queries": len(mined),
        "rows": sum(data.queries[item.query].rows for item in mined),
        "texts": data.num_candidates,
        "corpus_duplicates": data.merged,
        "candidates": sum(item.num_candidates for item in mined),
        "removed": dict(removed),
        "short": sum(len(item.negatives) < num_negatives for item in mined),
        "without_negatives": sum(not item.negatives for item in mined),
        "kept": len(scores),
        "marked": dict(Counter(negative.mark for item in mined for negative in item.negatives if negative.mark)),
        "positive_mean": _mean(positives),
        "negative_mean": _mean(negatives),
        "gap": _quantiles(_finite(margins - scores)),
        "above_weakest_positive": _mean((scores > weakest)[known].astype(np.float64)),
        "rank": _quantiles(_finite(ranks)),
        "distinct_negatives": len(uses),
        "most_uses": max(uses.values(), default=0),
        "histogram": histogram(positives, negatives),
        "hardest": hardest(data, mined),
    }


def _of_negatives(mined: Sequence[Mined], value: Callable[[Mined, Negative], float]) -> np.ndarray:
    """[negatives of all queries] float64: a value of each. Lists would hold an object for each of some million."""
    count = sum(len(item.negatives) for item in mined)
    return np.fromiter((value(item, own) for item in mined for own in item.negatives), dtype=np.float64, count=count)


def histogram(positives: np.ndarray, negatives: np.ndarray) -> Histogram | None:
    """Counts of both in the same bins, or None without scores."""
    together = np.concatenate([positives, negatives])
    if not len(together):
        return None
    edges = np.histogram_bin_edges(together, bins=BINS)
    return {
        "edges": edges.tolist(),
        "positives": np.histogram(positives, edges)[0].tolist(),
        "negatives": np.histogram(negatives, edges)[0].tolist(),
    }


def hardest(data: MiningData, mined: Sequence[Mined]) -> list[Hardest]:
    """Returns the negatives with the smallest gap, with shortened texts, for a manual check for false negatives."""
    known = (
        (item.margin_from - negative.score, item, negative)
        for item in mined
        for negative in item.negatives
        if np.isfinite(item.margin_from - negative.score)
    )
    return [
        {
            "query_id": data.queries[item.query].id,
            "negative_id": data.ids[negative.number],
            "score": negative.score,
            "gap": gap,
            "rank": negative.rank,
            "query": data.queries[item.query].text[:SHOWN_CHARACTERS],
            "negative": data.texts[negative.number][:SHOWN_CHARACTERS],
        }
        for gap, item, negative in heapq.nsmallest(SHOWN, known, key=lambda entry: entry[0])
    ]


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _quantiles(values: np.ndarray) -> dict[str, float] | None:
    if not len(values):
        return None
    return {f"p{round(100 * q)}": float(np.quantile(values, q)) for q in QUANTILES}
