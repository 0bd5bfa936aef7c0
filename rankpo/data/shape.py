"""Declarations of a dataset about its examples, which tasks read to choose an evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, runtime_checkable

from rankpo.data.dataset import Dataset
from rankpo.types import Example

PEEKED = 100  # The number of examples that determine the shape of a dataset.


@runtime_checkable
class EvaluationSet(Protocol):
    """A corpus with graded judgements."""

    @property
    def name(self) -> str: ...
    @property
    def ignore_identical_ids(self) -> bool: ...
    @property
    def relevant_from(self) -> float: ...
    @property
    def gain(self) -> str: ...
    def fingerprint(self) -> str: ...
    def corpus(self) -> Iterator[tuple[str, str]]: ...
    def queries(self) -> Iterator[tuple[str, str]]: ...
    def qrels(self) -> Mapping[str, Mapping[str, float]]: ...


@runtime_checkable
class StatesPrompts(Protocol):
    """An `EvaluationSet` with prompts that replace those of the model; None keeps the model's prompt.

    symmetric: whether documents have the prompt of queries.
    """

    @property
    def symmetric(self) -> bool: ...
    @property
    def passage_prompt(self) -> str | None: ...
    def query_prompt(self, query_id: str) -> str | None: ...


@dataclass(frozen=True)
class Shape:
    """Numbers of candidates of the first examples of a dataset."""

    sizes: tuple[int, ...]

    @classmethod
    def of(cls, examples: Iterable[Example]) -> Shape:
        """The shape of the first `PEEKED` examples."""
        return cls(tuple(len(example.candidates) for example in islice(examples, PEEKED)))

    @property
    def mostly_single(self) -> bool:
        """Whether most queries have one candidate, so that scores are compared with labels instead of ranked."""
        return 2 * sum(size == 1 for size in self.sizes) > len(self.sizes)

    @property
    def has_lists(self) -> bool:
        """Whether any query has more candidates than a preference pair."""
        return any(size > 2 for size in self.sizes)

    @property
    def has_pairs(self) -> bool:
        """Whether any query has two candidates."""
        return 2 in self.sizes


class Evaluable(Dataset, Protocol):
    """A dataset with the declarations of `Declares`."""

    @property
    def collection(self) -> str | None: ...
    @property
    def streaming(self) -> bool: ...
    @property
    def window(self) -> int: ...
    @property
    def shape(self) -> Shape: ...
    @property
    def judgements(self) -> EvaluationSet | None: ...
    @property
    def label_scale(self) -> float: ...
    @property
    def relevant_label(self) -> float | None: ...


class Declares:
    """The default declarations of datasets of yaml files; subclasses override them."""

    weight: float
    collection: str | None = None  # The collection whose means its metrics join.
    streaming: bool = False  # Whether its examples are read as they come.
    window: int = 10_000  # Examples that are shuffled together where it is streamed.

    def examples(self) -> Iterator[Example]:
        raise TypeError(f"{type(self).__name__} must yield examples")

    @property
    def shape(self) -> Shape:
        """The numbers of candidates of the first examples, which this property reads."""
        return Shape.of(self.examples())

    @property
    def judgements(self) -> EvaluationSet | None:
        """The corpus, queries and graded judgements of the dataset; None if it has examples only."""
        return None

    @property
    def label_scale(self) -> float:
        """The length of the range from which labels were scaled to 0 to 1; 1 if they were not scaled."""
        return 1.0

    @property
    def relevant_label(self) -> float | None:
        """The smallest relevant label minus the start of the range, before scaling; None if it is unknown."""
        return None


class Undeclared(Declares):
    """A dataset of another package without declarations; they are derived from its examples and its judgements."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.name = dataset.name

    def fingerprint(self) -> str:
        return self.dataset.fingerprint()

    def examples(self) -> Iterator[Example]:
        return self.dataset.examples()

    @property
    def judgements(self) -> EvaluationSet | None:
        return self.dataset if isinstance(self.dataset, EvaluationSet) else None


def declared(dataset: Dataset) -> Evaluable:
    """The dataset itself, or an `Undeclared` for a dataset without declarations."""
    return dataset if isinstance(dataset, Declares) else Undeclared(dataset)


def weight_of(dataset: Dataset) -> float:
    """The number of times that an epoch repeats a dataset; 1 for a dataset of another package without a weight."""
    return float(getattr(dataset, "weight", 1.0))
