"""Ranking metrics on judged runs, defined as in trec_eval, over all queries with a relevant document."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rankpo.data.readers.trec import Run, order

Qrels = Mapping[str, Mapping[str, float]]

GAINS = ("exp", "linear")
RANKPO_DEPTH = 100  # RankPO's evaluation uses only the first hundred documents.


@dataclass(frozen=True)
class Judged:
    """One query's ranking against its judgements.

    grades: of the ranked documents, best first, unjudged 0. relevant: which of them count as relevant.
    judged: which were judged. scores: in the same order. ideal: all judged grades, largest first.
    num_relevant: relevant judged documents, retrieved or not.
    """

    grades: np.ndarray
    relevant: np.ndarray
    judged: np.ndarray
    scores: np.ndarray
    ideal: np.ndarray
    num_relevant: int


@dataclass(frozen=True)
class Evaluation:
    """metrics: means over the queries with a relevant document. per_query: their values; a query has no `auc` if all
    or none of its candidates are relevant. counts: queries, missing, without_relevant, unjudged, and left_out of auc.
    undefined: the reason for each requested metric without a value, by name.
    """

    metrics: dict[str, float]
    per_query: dict[str, dict[str, float]]
    counts: dict[str, int] = field(default_factory=dict)
    undefined: dict[str, str] = field(default_factory=dict)


Metric = Callable[[Judged, "int | None", str], float]


def evaluate_run(
    run: Run, qrels: Qrels, metrics: Sequence[str], *, relevant_from: float = 1, gain: str = "exp"
) -> Evaluation:
    """Means and values per query. A judged query that the run lacks scores 0; one without a relevant document is left out.

    relevant_from: the smallest grade that counts as relevant; an unjudged document is never relevant, even with 0.
    gain: of ndcg@k, `exp` 2^g - 1 or `linear` g; where a grade exceeds 1, ndcg_exp@k and ndcg_linear@k are added.
    Raises ValueError for an unknown metric, and for a score that is NaN or infinite.
    """
    if gain not in GAINS:
        raise ValueError(f"gain must be one of {', '.join(GAINS)}, got {gain!r}")
    graded = any(grade > 1 for judgements in qrels.values() for grade in judgements.values())
    names = list(dict.fromkeys(metrics))
    if graded:
        cuts = [name.partition("@")[2] for name in names if name.startswith("ndcg@")]
        names += [f"ndcg_{form}@{cut}" for cut in cuts for form in ("exp", "linear")]
    parsed = {name: parse_metric(name) for name in names}
    judged = {
        query: _judge(query, run.get(query, {}), judgements, relevant_from) for query, judgements in qrels.items()
    }
    items = {query: item for query, item in judged.items() if item.num_relevant}
    per_query: dict[str, dict[str, float]] = {}
    for query, item in items.items():
        values = {name: METRICS[base](item, cut, gain) for name, (base, cut) in parsed.items() if base in METRICS}
        per_query[query] = {name: value for name, value in values.items() if not np.isnan(value)}
    means, undefined = _means(parsed, list(items.values()), list(per_query.values()))
    counts = {
        "queries": len(items),
        "missing": sum(query not in run for query in items),
        "without_relevant": len(judged) - len(items),
        "unjudged": sum(query not in qrels for query in run),
    }
    if "auc" in parsed:
        counts["auc_left_out"] = sum("auc" not in values for values in per_query.values())
    return Evaluation(means, per_query, counts, undefined)


def _means(
    parsed: Mapping[str, tuple[str, int | None]], items: Sequence[Judged], values: Sequence[Mapping[str, float]]
) -> tuple[dict[str, float], dict[str, str]]:
    """Returns values by name, and by name the reasons for missing values."""
    means: dict[str, float] = {}
    undefined: dict[str, str] = {}
    for name, (base, cut) in parsed.items():
        if base in POOLED:
            value = POOLED[base](items, cut)
        else:
            found = [of_query[name] for of_query in values if name in of_query]
            value = float(np.mean(found)) if found else float("nan")
        if np.isnan(value):
            undefined[name] = "all candidates are of one class" if items else "no query has a relevant document"
        else:
            means[name] = value
    return means, undefined


def _judge(query: str, scores: Mapping[str, float], judgements: Mapping[str, float], relevant_from: float) -> Judged:
    for document, score in scores.items():
        if not np.isfinite(score):
            raise ValueError(f"query {query}, document {document}: the score is {score}")
    ranking = order(scores)
    given = np.array([judgements.get(name, -np.inf) for name in ranking], dtype=np.float64)  # unjudged: below any grade
    grades = np.maximum(given, 0)
    return Judged(
        grades=grades,
        relevant=given >= relevant_from,
        judged=given > -np.inf,
        scores=np.array([scores[name] for name in ranking], dtype=np.float64),
        ideal=np.sort(np.array([max(0, grade) for grade in judgements.values()], dtype=np.float64))[::-1],
        num_relevant=sum(grade >= relevant_from for grade in judgements.values()),
    )


def _discounted(grades: np.ndarray, cut: int | None, gain: str) -> float:
    grades = grades[:cut]
    gains = 2.0**grades - 1 if gain == "exp" else grades
    return float((gains / np.log2(np.arange(2, len(grades) + 2))).sum())


def _ndcg(item: Judged, cut: int | None, gain: str) -> float:
    ideal = _discounted(item.ideal, cut, gain)
    return _discounted(item.grades, cut, gain) / ideal if ideal else 0.0


def _reciprocal_rank(item: Judged, cut: int | None, gain: str) -> float:
    found = np.flatnonzero(item.relevant[:cut])
    return 1.0 / (found[0] + 1) if len(found) else 0.0


def _recall(item: Judged, cut: int | None, gain: str) -> float:
    return float(item.relevant[:cut].sum()) / item.num_relevant


def _precision(item: Judged, cut: int | None, gain: str) -> float:
    return float(item.relevant[:cut].sum()) / (cut or max(1, len(item.relevant)))


def _hit_rate(item: Judged, cut: int | None, gain: str) -> float:
    return float(item.relevant[:cut].any())


def _average_precision(item: Judged, cut: int | None, gain: str) -> float:
    relevant = item.relevant[:cut]
    precision = np.cumsum(relevant) / np.arange(1, len(relevant) + 1)
    return float(precision[relevant].sum()) / item.num_relevant


def _judged(item: Judged, cut: int | None, gain: str) -> float:
    return float(item.judged[:cut].mean()) if len(item.judged) else 0.0


def _rankpo_recall(item: Judged, cut: int | None, gain: str) -> float:
    size = min(cut or len(item.relevant), len(item.relevant), item.num_relevant)
    return float(item.relevant[:cut].sum()) / size if size else 0.0


def _rankpo_ndcg(item: Judged, cut: int | None, gain: str) -> float:
    """scikit-learn's ndcg_score over the retrieved: gains of tied scores are averaged, the ideal ignores missed documents."""
    relevant = item.relevant[:RANKPO_DEPTH].astype(np.float64)
    scores = item.scores[:RANKPO_DEPTH]
    averaged = relevant.copy()
    for score in np.unique(scores):
        averaged[scores == score] = relevant[scores == score].mean()
    ideal = _discounted(np.sort(relevant)[::-1], cut, "linear")
    return _discounted(averaged, cut, "linear") / ideal if ideal else 0.0


def _auc(item: Judged, cut: int | None, gain: str) -> float:
    """P(a relevant candidate scores above another one), ties counting half; NaN where one kind is missing."""
    return area_under_curve(item.scores, item.relevant)


def _rankpo_auc(items: Sequence[Judged], cut: int | None) -> float:
    """RankPO's AUC@k, over a single pool of the first k documents of all queries, without calibration of queries."""
    scores = [item.scores[:RANKPO_DEPTH][:cut] for item in items]
    relevant = [item.relevant[:RANKPO_DEPTH][:cut] for item in items]
    return area_under_curve(np.concatenate(scores), np.concatenate(relevant)) if items else float("nan")


def area_under_curve(scores: np.ndarray, relevant: np.ndarray) -> float:
    """Mann and Whitney's U over the number of (relevant, other) pairs; ties count half. NaN where one kind is missing."""
    from scipy.stats import rankdata

    positives = int(relevant.sum())
    pairs = positives * (len(relevant) - positives)
    if not pairs:
        return float("nan")
    return float((rankdata(scores)[relevant].sum() - positives * (positives + 1) / 2) / pairs)


METRICS: dict[str, Metric] = {
    "ndcg": _ndcg,
    "ndcg_exp": lambda item, cut, gain: _ndcg(item, cut, "exp"),
    "ndcg_linear": lambda item, cut, gain: _ndcg(item, cut, "linear"),
    "mrr": _reciprocal_rank,
    "recall": _recall,
    "precision": _precision,
    "hit_rate": _hit_rate,
    "map": _average_precision,
    "judged": _judged,
    "auc": _auc,
    "rankpo/recall": _rankpo_recall,
    "rankpo/ndcg": _rankpo_ndcg,
}


POOLED: dict[str, Callable[[Sequence[Judged], int | None], float]] = {"rankpo/auc": _rankpo_auc}  # not by query
WITHOUT_CUT = ("map", "auc")


def parse_metric(name: str) -> tuple[str, int | None]:
    """Name and cut-off of `ndcg@10` and the like. Raises ValueError listing the valid names."""
    base, at, cut = name.partition("@")
    known = base in METRICS or base in POOLED
    valid_cut = re.fullmatch(r"[1-9]\d*", cut) is not None and base != "auc" if at else base in WITHOUT_CUT
    if not known or not valid_cut:
        valid = ", ".join(f"{metric}@k" for metric in (*METRICS, *POOLED) if metric != "auc")
        raise ValueError(f"unknown metric {name!r}; valid: {valid}, {', '.join(WITHOUT_CUT)}")
    return base, int(cut) if at else None


def preference_accuracy(chosen: np.ndarray, rejected: np.ndarray) -> tuple[float, int]:
    """Share of pairs whose chosen candidate scores higher, ties counting half; and the number of ties."""
    ties = int((chosen == rejected).sum())
    return float(((chosen > rejected).sum() + 0.5 * ties) / len(chosen)), ties
