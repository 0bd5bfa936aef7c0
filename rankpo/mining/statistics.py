"""Statistics of mining: counts by step, scores of positives and negatives, and the hardest negatives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from rankpo.mining.data import MiningData
from rankpo.mining.pipeline import Mined
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
    positives = _finite([score for item in mined for score in item.positives.tolist()])
    pairs = [(item, negative) for item in mined for negative in item.negatives]
    negatives = _finite([negative.score for _, negative in pairs])
    gaps = _finite([item.margin_from - negative.score for item, negative in pairs])
    uses = Counter(negative.number for _, negative in pairs)
    ranks = [negative.rank for _, negative in pairs if negative.rank is not None]
    weakest = [(item.positives.min(), negative.score) for item, negative in pairs if len(item.positives)]
    known = [(low, score) for low, score in weakest if np.isfinite(low) and np.isfinite(score)]
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
        "kept": len(pairs),
        "marked": dict(Counter(negative.mark for _, negative in pairs if negative.mark)),
        "positive_mean": _mean(positives),
        "negative_mean": _mean(negatives),
        "gap": _quantiles(gaps),
        "above_weakest_positive": _mean(np.array([float(score > low) for low, score in known])),
        "rank": _quantiles(np.array(ranks, dtype=np.float64)),
        "distinct_negatives": len(uses),
        "most_uses": max(uses.values(), default=0),
        "histogram": histogram(positives, negatives),
        "hardest": hardest(data, mined),
    }


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
    known = [
        (item.margin_from - negative.score, item, negative)
        for item in mined
        for negative in item.negatives
        if np.isfinite(item.margin_from - negative.score)
    ]
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
        for gap, item, negative in sorted(known, key=lambda entry: entry[0])[:SHOWN]
    ]


def _finite(values: Sequence[float]) -> np.ndarray:
    array = np.array(values, dtype=np.float64)
    return array[np.isfinite(array)]


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _quantiles(values: np.ndarray) -> dict[str, float] | None:
    if not len(values):
        return None
    return {f"p{round(100 * q)}": float(np.quantile(values, q)) for q in QUANTILES}
