"""Prompted: a wrapper that sets the prompts of one dataset, both for training and for evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from rankpo.data.dataset import Dataset
from rankpo.data.shape import EvaluationSet
from rankpo.data.wrapped import WrappedDataset
from rankpo.types import Example


class Prompted(WrappedDataset):
    """A dataset whose prompts override the prompts of the model.

    query_prompt, passage_prompt: None keeps the prompt of the model. If a record states its own prompt, the record's
    prompt is used.
    """

    def __init__(self, dataset: Dataset, query_prompt: str | None, passage_prompt: str | None) -> None:
        super().__init__(dataset)
        self.query_prompt = query_prompt
        self.passage_prompt = passage_prompt

    def fingerprint(self) -> str:
        return f"{self.inner.fingerprint()}-{self.query_prompt!r}-{self.passage_prompt!r}"

    def examples(self) -> Iterator[Example]:
        for example in self.inner.examples():
            query = self.query_prompt if example.query_prompt is None else example.query_prompt
            passage = self.passage_prompt if example.passage_prompt is None else example.passage_prompt
            yield replace(example, query_prompt=query, passage_prompt=passage)

    @property
    def judgements(self) -> EvaluationSet | None:
        found = super().judgements
        return None if found is None else PromptedSet(found, self.query_prompt, self.passage_prompt)


@dataclass(frozen=True)
class PromptedSet:
    """An `EvaluationSet` whose prompts override the prompts of the model. prompt: the prompt of all queries."""

    inner: EvaluationSet
    prompt: str | None
    passage_prompt: str | None

    symmetric = False

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def ignore_identical_ids(self) -> bool:
        return self.inner.ignore_identical_ids

    @property
    def relevant_from(self) -> float:
        return self.inner.relevant_from

    @property
    def gain(self) -> str:
        return self.inner.gain

    def query_prompt(self, query_id: str) -> str | None:
        return self.prompt

    def fingerprint(self) -> str:
        return f"{self.inner.fingerprint()}-{self.prompt!r}-{self.passage_prompt!r}"

    def corpus(self) -> Iterator[tuple[str, str]]:
        return self.inner.corpus()

    def queries(self) -> Iterator[tuple[str, str]]:
        return self.inner.queries()

    def qrels(self) -> Mapping[str, Mapping[str, float]]:
        return self.inner.qrels()
