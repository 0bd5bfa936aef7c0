"""Texts and judgements of an evaluation: queries, documents, grades and the judge's choices."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from rankpo.config.construct import build
from rankpo.data.dataset import Dataset
from rankpo.data.text.conversations import plain_text
from rankpo.report.runs import Evaluation


@runtime_checkable
class Judged(Protocol):
    """A data set with a corpus, queries and graded judgements."""

    def corpus(self) -> Iterator[tuple[str, str]]: ...
    def queries(self) -> Iterator[tuple[str, str]]: ...
    def qrels(self) -> dict[str, dict[str, int]]: ...


@dataclass(frozen=True, kw_only=True)
class Material:
    """queries, documents: texts by id. grades: {query id: {document id: grade}}."""

    queries: Mapping[str, str] = field(default_factory=dict)
    documents: Mapping[str, str] = field(default_factory=dict)
    grades: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


class Library:
    """The data sets of evaluations: the given ones, and those in the outputs of task=evaluate.

    notes: why a data set's texts are missing, one sentence each.
    """

    def __init__(self, given: Sequence[Dataset], evaluations: Sequence[Evaluation]) -> None:
        self.notes: list[str] = []
        self._datasets: dict[str, Dataset] = {dataset.name: dataset for dataset in given}
        for evaluation in evaluations:
            if evaluation.dataset not in self._datasets and evaluation.source is not None:
                self._rebuild(evaluation.dataset, evaluation.source)

    def _rebuild(self, name: str, source: Mapping[str, object]) -> None:
        try:
            self._datasets[name] = build(source, f"eval_datasets.{name}")
        except (ValueError, OSError) as error:  # Its files may have moved since the evaluation.
            note = f"The texts of {name} are not shown: {error}"
            if note not in self.notes:
                self.notes.append(note)

    def material(self, name: str, documents: Collection[str]) -> Material:
        """The texts of a data set's queries and of these documents, and the grades; empty for an unknown data set."""
        dataset = self._datasets.get(name)
        if not isinstance(dataset, Judged):
            return Material()
        return Material(
            queries=dict(dataset.queries()),
            documents={identity: text for identity, text in dataset.corpus() if identity in documents},
            grades=dataset.qrels(),
        )

    def choices(self, name: str) -> list[tuple[str, str, str, str]]:
        """(example id, query, preferred text, other text) of a preference data set; [] for an unknown one."""
        dataset = self._datasets.get(name)
        found = []
        for example in dataset.examples() if dataset is not None else ():
            if len(example.candidates) == 2 and example.relevance[0] != example.relevance[1]:
                first = 0 if example.relevance[0] > example.relevance[1] else 1
                preferred, other = example.candidates[first], example.candidates[1 - first]
                found.append((str(example.id), plain_text(example.query), preferred, other))
        return found
