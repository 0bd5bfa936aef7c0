"""Rules of measurement on a judged collection, shared by all tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rankpo.data.readers.trec import Run, order
from rankpo.evaluation.metrics import GAINS, Evaluation, Qrels, evaluate_run

if TYPE_CHECKING:
    from rankpo.data.shape import EvaluationSet


@dataclass(frozen=True, kw_only=True)
class Rules:
    """relevant_from: the smallest relevant grade. gain: of nDCG, `linear` (the grade, as in trec_eval) or
    `exp` (2^grade - 1). ignore_identical_ids: excludes documents with the query's id, as for ArguAna and Quora,
    whose queries are documents of the corpus.

    Raises ValueError for another gain.
    """

    relevant_from: float = 1
    gain: str = "linear"
    ignore_identical_ids: bool = True

    def __post_init__(self) -> None:
        if self.gain not in GAINS:
            raise ValueError(f"gain must be one of {', '.join(GAINS)}, got {self.gain!r}")

    @classmethod
    def of(cls, collection: EvaluationSet) -> Rules:
        """The rules that a collection declares."""
        return cls(
            relevant_from=collection.relevant_from,
            gain=collection.gain,
            ignore_identical_ids=collection.ignore_identical_ids,
        )

    def hits(self, query: str, scores: Mapping[str, float], top_k: int | None = None) -> dict[str, float]:
        """The best `top_k` documents of a query with their scores, best first; None: all of them."""
        kept = {name: score for name, score in scores.items() if not (self.ignore_identical_ids and name == query)}
        return {name: kept[name] for name in order(kept)[:top_k]}

    def left_out(self, qrels: Qrels) -> str | None:
        """One line about the judged queries that the means leave out, or None if there are none."""
        count = sum(not any(grade >= self.relevant_from for grade in grades.values()) for grades in qrels.values())
        if not count:
            return None
        return (
            f"{count} of {len(qrels)} judged queries have no document of grade {self.relevant_from:g} or more and are left "
            "out of the means; trec_eval counts them as 0"
        )

    def measure(self, run: Run, qrels: Qrels, metrics: Sequence[str]) -> Evaluation:
        """Returns metrics of a run after the exclusion of identical ids. Raises errors as `evaluate_run`."""
        hits = {query: self.hits(query, scores) for query, scores in run.items()}
        return evaluate_run(hits, qrels, metrics, relevant_from=self.relevant_from, gain=self.gain)
