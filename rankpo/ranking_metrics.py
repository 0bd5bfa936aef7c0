"""Ranking metrics on judged runs, defined as in trec_eval, over every query that has something to find."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

Run = Mapping[str, Mapping[str, float]]
Qrels = Mapping[str, Mapping[str, int]]

RANKPO_DEPTH = 100  # RankPO's evaluation looks at the first hundred documents only


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
    """metrics: means over the queries with something relevant. counts: queries, missing, without_relevant, unjudged."""

    metrics: dict[str, float]
    per_query: dict[str, dict[str, float]]
    counts: dict[str, int] = field(default_factory=dict)


Metric = Callable[[Judged, "int | None", str], float]


def order(scores: Mapping[str, float]) -> list[str]:
    """Document ids, best first: by score downwards, ties by id downwards as text (trec_eval's rule)."""
    return sorted(scores, key=lambda name: (scores[name], name), reverse=True)


def evaluate_run(
    run: Run, qrels: Qrels, metrics: Sequence[str], *, relevant_from: int = 1, gain: str = "exp"
) -> Evaluation:
    """Means and values per query. A judged query that the run lacks scores 0; one without a relevant document is left out.

    gain: of ndcg@k, `exp` 2^g - 1 or `linear` g; where a grade exceeds 1, ndcg_exp@k and ndcg_linear@k are added.
    Raises ValueError for an unknown metric, and for a score that is NaN or infinite.
    """
    if gain not in ("exp", "linear"):
        raise ValueError(f"gain must be one of exp, linear, got {gain!r}")
    graded = any(grade > 1 for judgements in qrels.values() for grade in judgements.values())
    names = list(dict.fromkeys(metrics))
    if graded:
        cuts = [name.partition("@")[2] for name in names if name.startswith("ndcg@")]
        names += [f"ndcg_{form}@{cut}" for cut in cuts for form in ("exp", "linear")]
    parsed = {name: parse_metric(name) for name in names}
    per_query: dict[str, dict[str, float]] = {}
    without = 0
    for query, judgements in qrels.items():
        item = _judge(query, run.get(query, {}), judgements, relevant_from)
        if item.num_relevant == 0:
            without += 1
            continue
        per_query[query] = {name: compute(item, cut, gain) for name, (compute, cut) in parsed.items()}
    means = (
        {name: float(np.mean([values[name] for values in per_query.values()])) for name in names} if per_query else {}
    )
    counts = {
        "queries": len(per_query),
        "missing": sum(query not in run for query in per_query),
        "without_relevant": without,
        "unjudged": sum(query not in qrels for query in run),
    }
    return Evaluation(means, per_query, counts)


def _judge(query: str, scores: Mapping[str, float], judgements: Mapping[str, int], relevant_from: int) -> Judged:
    for document, score in scores.items():
        if not np.isfinite(score):
            raise ValueError(f"query {query}, document {document}: the score is {score}")
    ranking = order(scores)
    grades = np.array([max(0, judgements.get(name, 0)) for name in ranking], dtype=np.float64)
    return Judged(
        grades=grades,
        relevant=grades >= relevant_from,
        judged=np.array([name in judgements for name in ranking], dtype=bool),
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
    """scikit-learn's ndcg_score over the retrieved: gains of tied scores are averaged, the ideal sees no missed document."""
    relevant = item.relevant[:RANKPO_DEPTH].astype(np.float64)
    scores = item.scores[:RANKPO_DEPTH]
    averaged = relevant.copy()
    for score in np.unique(scores):
        averaged[scores == score] = relevant[scores == score].mean()
    ideal = _discounted(np.sort(relevant)[::-1], cut, "linear")
    return _discounted(averaged, cut, "linear") / ideal if ideal else 0.0


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
    "rankpo/recall": _rankpo_recall,
    "rankpo/ndcg": _rankpo_ndcg,
}


def parse_metric(name: str) -> tuple[Metric, int | None]:
    """Function and cut-off of `ndcg@10` and the like. Raises ValueError listing the valid names."""
    match = re.fullmatch(r"([a-z_/]+)(?:@([1-9]\d*))?", name)
    if match is None or match[1] not in METRICS or (match[2] is None and match[1] != "map"):
        valid = ", ".join(f"{known}@k" for known in METRICS)
        raise ValueError(f"unknown metric {name!r}; valid: {valid}, map")
    return METRICS[match[1]], int(match[2]) if match[2] else None


def preference_accuracy(chosen: np.ndarray, rejected: np.ndarray) -> tuple[float, int]:
    """Share of pairs whose chosen candidate scores higher, ties counting half; and the number of ties."""
    ties = int((chosen == rejected).sum())
    return float(((chosen > rejected).sum() + 0.5 * ties) / len(chosen)), ties
