"""Declarations of a dataset about its examples, which tasks read to choose an evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, runtime_checkable

from rankpo.data.dataset import Dataset
from rankpo.types import Example

PEEKED = 100  # examples that are read to learn the shape of a dataset


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
    """An `EvaluationSet` with prompts of its own in place of the model's; None: the model's.

    symmetric: documents have the prompt of queries.
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
        """Whether most queries have one candidate: there is nothing to rank, but a score to meet."""
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
    """The declarations of a dataset that a yaml names; datasets inherit them and override what they know better."""

    weight: float
    collection: str | None = None  # The collection whose means its metrics join.
    streaming: bool = False  # Whether its examples are read as they come.
    window: int = 10_000  # Examples that are shuffled together where it is streamed.

    def examples(self) -> Iterator[Example]:
        raise TypeError(f"{type(self).__name__} must yield examples")

    @property
    def shape(self) -> Shape:
        """The numbers of candidates that examples have; reads the first of them."""
        return Shape.of(self.examples())

    @property
    def judgements(self) -> EvaluationSet | None:
        """The corpus, queries and graded judgements of a dataset that has them; None: examples alone."""
        return None

    @property
    def label_scale(self) -> float:
        """The length of the range that labels were scaled from, to 0 to 1; 1 where they are as they were."""
        return 1.0

    @property
    def relevant_label(self) -> float | None:
        """The smallest relevant label, counted from the start of the range before scaling; None: nobody said."""
        return None


class Undeclared(Declares):
    """A dataset of another package that declares nothing: its examples and, where it has them, its judgements tell."""

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
    """The dataset itself, or what stands for its declarations where it has none."""
    return dataset if isinstance(dataset, Declares) else Undeclared(dataset)


def weight_of(dataset: Dataset) -> float:
    """How often an epoch repeats the examples of a dataset; 1 for a dataset of another package that does not say."""
    return float(getattr(dataset, "weight", 1.0))
