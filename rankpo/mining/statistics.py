"""Statistics of mining: counts by step, scores of positives and negatives, and the hardest negatives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rankpo.mining.data import MiningData
from rankpo.mining.pipeline import Mined

BINS = 20
BARS = "▁▂▃▄▅▆▇█"
SHOWN = 20  # hardest negatives
SHOWN_CHARACTERS = 300
QUANTILES = (0.05, 0.5, 0.95)


def statistics(data: MiningData, mined: Sequence[Mined], num_negatives: int) -> dict[str, object]:
    """All numbers of one variant, JSON-like. Scores that are not known are left out of means and quantiles.

    gap: what margins are measured from, less the negative's score. above_weakest_positive: share of the scored
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


def emptiness(values: Mapping[str, Any]) -> str:
    """What to say where queries have no negative at all: which steps took their candidates, and what to change."""
    steps = ", ".join(f"{step} {count}" for step, count in values["removed"].items() if count)
    return (
        f"{values['without_negatives']} of {values['queries']} queries have no negative; of {values['candidates']} "
        f"candidates were removed: {steps or 'none'}. Widen mining.top_k, the thresholds or the range, or set "
        "mining.on_short"
    )


def histogram(positives: np.ndarray, negatives: np.ndarray) -> dict[str, Any] | None:
    """Counts of both in the same bins, or None without scores."""
    together = np.concatenate([positives, negatives])
    if not len(together):
        return None
    edges = np.histogram_bin_edges(together, bins=BINS)
    counts = {name: np.histogram(values, edges)[0].tolist() for name, values in _named(positives, negatives)}
    return {"edges": edges.tolist(), **counts}


def _named(positives: np.ndarray, negatives: np.ndarray) -> list[tuple[str, np.ndarray]]:
    return [("positives", positives), ("negatives", negatives)]


def histogram_line(counts: Mapping[str, Any]) -> str:
    """A histogram as one line of text: the heights of each kind's bins, over its own largest."""
    bars = {
        name: "".join(_bar(count / max(1, *counts[name])) for count in counts[name])
        for name in counts
        if name != "edges"
    }
    low, high = counts["edges"][0], counts["edges"][-1]
    return f"scores {low:.4g} to {high:.4g}: " + ", ".join(f"{name} {text}" for name, text in bars.items())


def _bar(height: float) -> str:
    """height: 0 to 1. A bin that holds anything is seen."""
    return " " if height == 0 else BARS[min(len(BARS) - 1, int(height * len(BARS)))]


def hardest(data: MiningData, mined: Sequence[Mined]) -> list[dict[str, object]]:
    """The negatives with the smallest gap, texts cut: to be read by a person, who sees false negatives at once."""
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


def table_row(name: str, values: Mapping[str, Any]) -> dict[str, object]:
    """One row of the printed table; each "removed" column counts candidates that a step of the filter took."""
    removed, gap, rank = values["removed"], values["gap"] or {}, values["rank"] or {}
    equal = ("own_text", "positives", "near_duplicates")
    return {
        "file": name,
        "queries": values["queries"],
        "candidates": values["candidates"],
        "removed: equal text": sum(removed.get(step, 0) for step in equal),
        "removed: score": removed.get("max_score", 0) + removed.get("min_score", 0),
        "removed: margin": removed.get("margin", 0),
        "removed: rank": removed.get("range", 0),
        "removed: used often": removed.get("max_uses", 0),
        "queries with too few": values["short"],
        "kept": values["kept"],
        "mean positive score": values["positive_mean"],
        "mean negative score": values["negative_mean"],
        **{f"gap {quantile}": gap.get(quantile) for quantile in ("p5", "p50", "p95")},
        "share above the weakest positive": values["above_weakest_positive"],
        "median rank": rank.get("p50"),
        "most uses of one text": values["most_uses"],
    }


def _finite(values: Sequence[float]) -> np.ndarray:
    array = np.array(values, dtype=np.float64)
    return array[np.isfinite(array)]


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _quantiles(values: np.ndarray) -> dict[str, float] | None:
    if not len(values):
        return None
    return {f"p{round(100 * q)}": float(np.quantile(values, q)) for q in QUANTILES}
