"""Retrieval over a corpus with graded judgements: every text is encoded once, on one of the ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rankpo.data.shape import StatesPrompts
from rankpo.data.table import ExampleTable
from rankpo.errors import ConfigError
from rankpo.evaluation.base import Evaluator, Result, Say
from rankpo.evaluation.rules import Rules
from rankpo.models.vectors import GivesVectors, encode_table
from rankpo.retrieval.exact import search_vectors
from rankpo.runs import processes
from rankpo.types import Example, Vectors

if TYPE_CHECKING:
    from rankpo.data.shape import EvaluationSet


class _Texts:
    """Queries and documents of an evaluation set as examples for the text store."""

    def __init__(self, evaluation_set: EvaluationSet) -> None:
        self.name = f"{evaluation_set.name}/texts"
        self.evaluation_set = evaluation_set

    def fingerprint(self) -> str:
        return self.evaluation_set.fingerprint()

    def examples(self) -> Iterator[Example]:
        prompts = self.evaluation_set if isinstance(self.evaluation_set, StatesPrompts) else None
        for query_id, text in sorted(self.evaluation_set.queries()):
            prompt = None if prompts is None else prompts.query_prompt(query_id)
            yield Example(query=text, candidates=(), relevance=(), id=f"q:{query_id}", query_prompt=prompt)
        before = None if prompts is None else prompts.passage_prompt
        alike = prompts is not None and prompts.symmetric
        for document_id, text in self.evaluation_set.corpus():
            # Documents are candidates of an empty query, since the store holds only examples.
            yield Example(
                query="",
                candidates=(text,),
                relevance=(0.0,),
                id=f"d:{document_id}",
                query_prompt=before,
                passage_prompt=before,
                symmetric=alike,
            )


class RetrievalEvaluator(Evaluator):
    """Encodes the corpus, searches exactly, and compares with the judgements.

    top_k: documents kept per query; at least the largest cut-off among the metrics.
    The constructor raises ValueError if no judgement is relevant.
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
        self.rules = Rules.of(evaluation_set)
        self.qrels = evaluation_set.qrels()
        grades = [grade for judged in self.qrels.values() for grade in judged.values()]
        if not any(grade >= self.rules.relevant_from for grade in grades):
            raise ConfigError([f"eval_datasets.{self.name}: no judgement reaches grade {self.rules.relevant_from}"])
        if (line := self.rules.left_out(self.qrels)) is not None:
            say(f"{self.name}: {line}")

    def depends_on(self) -> tuple[object, ...]:
        grades = sorted((query, sorted(judged.items())) for query, judged in self.qrels.items())
        rules = self.rules
        return (self.metrics, self.top_k, rules.relevant_from, rules.gain, rules.ignore_identical_ids, grades)

    def names(self) -> Iterator[str]:
        for texts in (self.evaluation_set.queries(), self.evaluation_set.corpus()):
            yield from (name for name, _ in texts)

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
        queries = encode_table(model, table, np.asarray(table.query)[chosen], "query")
        rows, documents = documents_by_row(table, ids)
        corpus = encode_table(model, table, rows, "candidate")
        result = None
        if processes.rank() == 0:
            result = self._measure(model, (queries, corpus), [ids[index][2:] for index in chosen], documents)
        return processes.broadcast_object(result)

    def _measure(
        self, model: GivesVectors, vectors: tuple[Vectors, Vectors], query_ids: list[str], documents: list[list[str]]
    ) -> Result:
        """vectors: of queries and corpus. documents: the ids of each text of the corpus, by `documents_by_row`."""
        depth = self.top_k + self.rules.ignore_identical_ids
        scores, indices = search_vectors(*vectors, model.stored_similarity, depth)
        run: dict[str, dict[str, float]] = {}
        for query_id, row_scores, row_indices in zip(query_ids, scores.tolist(), indices.tolist(), strict=True):
            found = {
                name: score for index, score in zip(row_indices, row_scores, strict=True) for name in documents[index]
            }
            run[query_id] = self.rules.hits(query_id, found, self.top_k)
        evaluation = self.rules.measure(run, self.qrels, self.metrics)
        return Result(evaluation.metrics, evaluation.per_query, run, evaluation.counts, evaluation.undefined)


def documents_by_row(table: ExampleTable, ids: Sequence[str]) -> tuple[np.ndarray, list[list[str]]]:
    """Returns the corpus's distinct rows [n] and the document ids of each.

    Each distinct text is searched once, since equal columns of a matrix product can differ in their last bit, so that
    equal documents would not tie. Rows are in descending order of their largest id, since the search keeps the first of
    equal scores and trec_eval the larger id.
    """
    numbers = sorted((n for n, name in enumerate(ids) if name[0] == "d"), key=ids.__getitem__, reverse=True)
    documents: dict[int, list[str]] = {}
    for number, row in zip(numbers, np.asarray(table.candidates)[table.offsets[numbers]].tolist(), strict=True):
        documents.setdefault(row, []).append(ids[number][2:])
    return np.fromiter(documents, dtype=np.int64, count=len(documents)), list(documents.values())
