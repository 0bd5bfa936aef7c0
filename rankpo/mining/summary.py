"""Statistics: the form of statistics.json of mining, and its summaries as table rows and lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NotRequired, TypedDict

BARS = "▁▂▃▄▅▆▇█"


class Histogram(TypedDict):
    """Counts of the scores of positives and negatives between the same edges, one edge more than counts."""

    edges: Sequence[float]
    positives: Sequence[int]
    negatives: Sequence[int]


class Hardest(TypedDict):
    """A negative with a small gap, its texts cut."""

    query_id: str
    negative_id: str
    score: float
    gap: float
    rank: int | None
    query: str
    negative: str


class Statistics(TypedDict):
    """The numbers of one file, see `statistics.statistics`. None: no score is known.

    written: queries in the file. audit: results of a cross-encoder on some queries, with mining.audit_rows.
    """

    queries: int
    rows: int
    texts: int
    corpus_duplicates: int
    candidates: int
    removed: Mapping[str, int]
    short: int
    without_negatives: int
    kept: int
    marked: Mapping[str, int]
    positive_mean: float | None
    negative_mean: float | None
    gap: Mapping[str, float] | None
    above_weakest_positive: float | None
    rank: Mapping[str, float] | None
    distinct_negatives: int
    most_uses: int
    histogram: Histogram | None
    hardest: Sequence[Hardest]
    written: NotRequired[int]
    audit: NotRequired[Mapping[str, object]]


def emptiness(values: Statistics) -> str:
    """Returns a message on queries without negatives: the steps that removed candidates, and keys to change."""
    steps = ", ".join(f"{step} {count}" for step, count in values["removed"].items() if count)
    return (
        f"{values['without_negatives']} of {values['queries']} queries have no negative; of {values['candidates']} "
        f"candidates were removed: {steps or 'none'}. Widen mining.top_k, the thresholds or the range, or set "
        "mining.on_short"
    )


def histogram_line(counts: Histogram) -> str:
    """A histogram as one line of text: the heights of each kind's bins, over its own largest."""
    heights = {"positives": counts["positives"], "negatives": counts["negatives"]}
    bars = {name: "".join(_bar(count / max(1, *own)) for count in own) for name, own in heights.items()}
    low, high = counts["edges"][0], counts["edges"][-1]
    return f"scores {low:.4g} to {high:.4g}: " + ", ".join(f"{name} {text}" for name, text in bars.items())


def _bar(height: float) -> str:
    """height: 0 to 1. Every non-empty bin is visible."""
    return " " if height == 0 else BARS[min(len(BARS) - 1, int(height * len(BARS)))]


def table_row(name: str, values: Statistics) -> dict[str, object]:
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
