"""What a model is worth: retrieval over a corpus, and agreement with preferences. Sharded over ranks, each text once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from rankpo.data.readers.trec import order
from rankpo.data.report import all_pairs
from rankpo.data.table import Dataset, ExampleTable, Pieces, open_table
from rankpo.evaluation.metrics import Evaluation, evaluate_run, preference_accuracy
from rankpo.models.vectors import GivesVectors, encode_table
from rankpo.retrieval.exact import search
from rankpo.runs import processes
from rankpo.types import Example

if TYPE_CHECKING:
    from rankpo.data.readers.beir import EvaluationSet
    from rankpo.models.base import RankingModel
    from rankpo.models.reference import Reference

Say = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """metrics: means by name. per_query: {query id: {name: value}}. run: {query id: {document id: score}}, or {}.

    undefined: why a metric that was asked for has no value, by name.
    """

    metrics: Mapping[str, float]
    per_query: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    run: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    undefined: Mapping[str, str] = field(default_factory=dict)


class Evaluator(ABC):
    """One data set and its metrics; `evaluate(model)` may be called on all ranks and answers the same on each."""

    name: str
    metrics: tuple[str, ...]
    dataset: Dataset
    cache_dir: str | Path
    say: Say
    retained = False  # whether its metrics are what alignment may cost: reported over the start model's too

    def table(self, pieces: Pieces) -> ExampleTable:
        """The texts that `evaluate` scores, in the text store."""
        return open_table(self.cache_dir, [self.dataset], pieces, self.say)

    def pairs(self, table: ExampleTable) -> np.ndarray:
        """[P, 2] rows of `table`: the queries and candidates that are judged together."""
        return all_pairs(table)

    def compare_with(  # noqa: B027 (most evaluators need no start model)
        self,
        model: RankingModel,
        autocast: Callable[[], AbstractContextManager[None]],
        reference: Reference | None,
    ) -> None:
        """Takes note of the model that a run starts from, and of the loss's reference; called once, on all ranks, before
        the first update. autocast: the policy's; a difference of precision is no gain."""

    def depends_on(self) -> tuple[object, ...]:
        """What its metrics depend on besides the model and its table; the repr of each says all."""
        return (self.metrics,)

    @abstractmethod
    def evaluate(self, model: RankingModel) -> Result: ...


class _Texts:
    """Queries and documents of an evaluation set as examples, so that they live in the text store."""

    def __init__(self, evaluation_set: EvaluationSet) -> None:
        self.name = f"{evaluation_set.name}/texts"
        self.evaluation_set = evaluation_set

    def fingerprint(self) -> str:
        return self.evaluation_set.fingerprint()

    def examples(self) -> Iterator[Example]:
        for query_id, text in sorted(self.evaluation_set.queries()):
            yield Example(query=text, candidates=(), relevance=(), id=f"q:{query_id}")
        for document_id, text in self.evaluation_set.corpus():
            # a document stands as a candidate of the empty query: the store knows no other place for it
            yield Example(query="", candidates=(text,), relevance=(0.0,), id=f"d:{document_id}")


class RetrievalEvaluator(Evaluator):
    """Encodes the corpus, searches exactly, and compares with the judgements.

    top_k: documents kept per query; at least the largest cut-off among the metrics.
    Raises ValueError at construction where no judgement is relevant.
    """

    retained = True

    def __init__(
        self,
        evaluation_set: EvaluationSet,
        cache_dir: str | Path,
        metrics: Sequence[str],
        say: Say,
        top_k: int = 100,
    ) -> None:
        self.name = evaluation_set.name
        self.metrics = tuple(metrics)
        self.evaluation_set = evaluation_set
        self.top_k = top_k
        self.cache_dir = cache_dir
        self.say = say
        self.dataset = _Texts(evaluation_set)
        self.qrels = evaluation_set.qrels()
        if not any(
            grade >= evaluation_set.relevant_from for judged in self.qrels.values() for grade in judged.values()
        ):
            raise ValueError(f"eval_datasets.{self.name}: no judgement reaches grade {evaluation_set.relevant_from}")

    def depends_on(self) -> tuple[object, ...]:
        chosen = self.evaluation_set
        grades = sorted((query, sorted(judged.items())) for query, judged in self.qrels.items())
        return (self.metrics, self.top_k, chosen.relevant_from, chosen.gain, chosen.ignore_identical_ids, grades)

    def pairs(self, table: ExampleTable) -> np.ndarray:
        row = {
            table.id(number): int(table.query[number] if table.id(number)[0] == "q" else table.candidates[slot])
            for number, slot in enumerate(table.offsets[:-1])
        }
        judged = [(f"q:{query}", f"d:{document}") for query, of_query in self.qrels.items() for document in of_query]
        return np.array([(row[query], row[document]) for query, document in judged], dtype=np.int64).reshape(-1, 2)

    def evaluate(self, model: GivesVectors) -> Result:  # type: ignore[override]
        table = self.table(model.inputs.pieces())
        ids = [table.id(example) for example in range(len(table))]
        chosen = [number for number, name in enumerate(ids) if name[0] == "q" and name[2:] in self.qrels]
        queries = encode_table(model, table, np.asarray(table.query)[chosen], "query").rows
        rows, documents = documents_by_row(table, ids)
        corpus = encode_table(model, table, rows, "candidate").rows
        result = None
        if processes.rank() == 0:
            result = self._measure(queries, corpus, [ids[index][2:] for index in chosen], documents)
        return processes.broadcast_object(result)

    def _measure(self, queries: Tensor, corpus: Tensor, query_ids: list[str], documents: list[list[str]]) -> Result:
        """documents: the ids of each of the corpus's texts, as `documents_by_row` gives them."""
        own_id = self.evaluation_set.ignore_identical_ids
        scores, indices = search(queries, corpus, self.top_k + own_id)
        run: dict[str, dict[str, float]] = {}
        for query_id, row_scores, row_indices in zip(query_ids, scores.tolist(), indices.tolist(), strict=True):
            found = {
                name: score
                for index, score in zip(row_indices, row_scores, strict=True)
                for name in documents[index]
                if not (own_id and name == query_id)
            }
            run[query_id] = {name: found[name] for name in order(found)[: self.top_k]}
        evaluation: Evaluation = evaluate_run(
            run,
            self.qrels,
            self.metrics,
            relevant_from=self.evaluation_set.relevant_from,
            gain=self.evaluation_set.gain,
        )
        return Result(evaluation.metrics, evaluation.per_query, run, evaluation.counts, evaluation.undefined)


def documents_by_row(table: ExampleTable, ids: Sequence[str]) -> tuple[np.ndarray, list[list[str]]]:
    """The corpus's distinct rows, [n], and the document ids of each.

    A text is searched once: equal columns of a matrix product can differ in their last bit, and equal documents would
    not tie. Rows stand by their largest id downwards, since the search keeps the first of equal scores and
    trec_eval's rule the larger id: so none is lost at the border.
    """
    numbers = sorted((n for n, name in enumerate(ids) if name[0] == "d"), key=ids.__getitem__, reverse=True)
    documents: dict[int, list[str]] = {}
    for number, row in zip(numbers, np.asarray(table.candidates)[table.offsets[numbers]].tolist(), strict=True):
        documents.setdefault(row, []).append(ids[number][2:])
    return np.fromiter(documents, dtype=np.int64, count=len(documents)), list(documents.values())


class PreferenceEvaluator(Evaluator):
    """Agreement with preference pairs: the share whose chosen candidate scores higher, ties counting half.

    Examples that are not two candidates of different relevance are counted as `not_pairs`.
    """

    metrics: tuple[str, ...] = ("accuracy", "margin")

    def __init__(self, dataset: Dataset, cache_dir: str | Path, say: Say) -> None:
        self.name = dataset.name
        self.dataset = dataset
        self.cache_dir = cache_dir
        self.say = say

    def values(self, model: Any, table: ExampleTable) -> dict[str, np.ndarray]:
        """[slots] by name: `scores` of the model, and what else `further` reads."""
        return {"scores": model.slot_scores(table)}

    def further(
        self, model: Any, table: ExampleTable, values: Mapping[str, np.ndarray], pairs: np.ndarray
    ) -> Mapping[str, float]:
        """More metrics by name. pairs: [P, 2] slots, chosen first."""
        return {}

    def evaluate(self, model: RankingModel) -> Result:
        table = self.table(model.inputs.pieces())
        known = self.values(model, table)
        scores = known["scores"]
        pairs = [table.slots(example) for example in range(len(table)) if len(table.slots(example)) == 2]
        relevance = np.asarray(table.relevance)
        ordered = [(a, b) if relevance[a] > relevance[b] else (b, a) for a, b in pairs if relevance[a] != relevance[b]]
        if not ordered:
            raise ValueError(f"eval_datasets.{self.name} holds no pair of different relevance")
        chosen, rejected = np.array(ordered).T
        accuracy, ties = preference_accuracy(scores[chosen], scores[rejected])
        metrics = {"accuracy": accuracy, "margin": float((scores[chosen] - scores[rejected]).mean())}
        metrics.update(self.further(model, table, known, np.array(ordered)))
        values = (scores[chosen] > scores[rejected]) + 0.5 * (scores[chosen] == scores[rejected])
        names = [table.id(example) for example in range(len(table))]
        slot_owner = np.repeat(np.arange(len(table)), np.diff(table.offsets))
        owners = slot_owner[chosen]  # `group`: pairs of one query stand or fall together in tests
        per_query = {
            names[owner]: {"accuracy": float(value), "group": int(table.query[owner])}
            for owner, value in zip(owners, values, strict=True)
        }
        return Result(
            metrics, per_query, counts={"pairs": len(ordered), "ties": ties, "not_pairs": len(table) - len(ordered)}
        )
