"""Known grades of judged passages, and the share of pairs of passages with equal grades."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rankpo.data.dataset import Dataset
from rankpo.data.shape import EvaluationSet
from rankpo.judges.pairs import Pair
from rankpo.retrieval.corpus import text_key
from rankpo.types import Prompt


@dataclass(frozen=True)
class EqualGrades:
    """count: pairs of passages with the same grade. known: pairs of passages that both have a known grade."""

    count: int
    known: int

    @property
    def share(self) -> float | None:
        return self.count / self.known if self.known else None


def equal_grades(
    pairs: Sequence[Pair], queries: Mapping[str, Prompt], texts: Mapping[str, str], datasets: Sequence[Dataset]
) -> EqualGrades:
    """Compares the grades that the datasets state for the passages of each pair.

    Judgements of a collection apply to its queries by id; other passages have grade 0, as in an evaluation. Examples
    apply by text, and only to the candidates that they list.
    """
    judged = _judgements(datasets)
    wanted = {pair.query_id for pair in pairs} - judged.keys()
    stated = _examples(datasets, {_key(queries[name]) for name in wanted}) if wanted else {}
    count = known = 0
    for pair in pairs:
        if (grades := judged.get(pair.query_id)) is not None:
            first, second = grades.get(pair.id1, 0.0), grades.get(pair.id2, 0.0)
        else:
            of_query = stated.get(_key(queries[pair.query_id]), {})
            keys = text_key(texts[pair.id1]), text_key(texts[pair.id2])
            if not all(key in of_query for key in keys):
                continue
            first, second = of_query[keys[0]], of_query[keys[1]]
        known += 1
        count += first == second
    return EqualGrades(count, known)


def _judgements(datasets: Sequence[Dataset]) -> dict[str, Mapping[str, float]]:
    """Grades by query id and passage id, of all collections among the datasets."""
    found: dict[str, Mapping[str, float]] = {}
    for dataset in datasets:
        if isinstance(dataset, EvaluationSet):
            found.update(dataset.qrels())
    return found


def _examples(datasets: Sequence[Dataset], queries: set[bytes]) -> dict[bytes, dict[bytes, float]]:
    """Grades by the texts of query and candidate, of the examples of the given queries."""
    found: dict[bytes, dict[bytes, float]] = {}
    for dataset in datasets:
        for example in dataset.examples():
            if (key := _key(example.query)) in queries:
                grades = example.grades or example.relevance
                found.setdefault(key, {}).update(zip(map(text_key, example.candidates), grades, strict=True))
    return found


def _key(query: Prompt) -> bytes:
    return text_key(query if isinstance(query, str) else repr(query))
