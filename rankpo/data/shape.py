"""Properties that a dataset declares about its examples. Tasks read them to choose an evaluation."""

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
    """A corpus and queries, with graded judgements of documents for these queries."""

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
class HasTitles(Protocol):
    """A corpus whose documents have titles beside their texts."""

    def titles(self) -> Iterator[tuple[str, str]]: ...


@runtime_checkable
class StatesPrompts(Protocol):
    """An `EvaluationSet` whose prompts replace those of the model. A prompt of None keeps the model's prompt.

    symmetric: whether documents get the same prompt as queries.
    """

    @property
    def symmetric(self) -> bool: ...
    @property
    def passage_prompt(self) -> str | None: ...
    def query_prompt(self, query_id: str) -> str | None: ...


@dataclass(frozen=True)
class Shape:
    """The number of candidates of each of the first `PEEKED` examples of a dataset."""

    sizes: tuple[int, ...]

    @classmethod
    def of(cls, examples: Iterable[Example]) -> Shape:
        """Computes the shape from the first `PEEKED` examples."""
        return cls(tuple(len(example.candidates) for example in islice(examples, PEEKED)))

    @property
    def mostly_single(self) -> bool:
        """Whether most queries have a single candidate.

        A single candidate cannot be ranked, so the evaluation compares scores with labels across queries.
        """
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
    """A dataset with the properties that `Declares` defines."""

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
    """Default values of the properties, for datasets that are configured in yaml files. Subclasses override them."""

    weight: float
    collection: str | None = None  # Evaluation averages metrics over the datasets of a collection.
    streaming: bool = False  # Whether training reads the examples window by window, for data larger than the disk.
    window: int = 10_000  # The number of examples that a streamed dataset shuffles together.

    def examples(self) -> Iterator[Example]:
        raise TypeError(f"{type(self).__name__} must yield examples")

    @property
    def shape(self) -> Shape:
        """The shape of the dataset. Every access to this property reads the first examples."""
        return Shape.of(self.examples())

    @property
    def judgements(self) -> EvaluationSet | None:
        """The corpus, queries and graded judgements of the dataset; None if it has examples only."""
        return None

    @property
    def label_scale(self) -> float:
        """The width of the label range that the reader scaled to [0, 1]; 1 if the reader did not scale labels."""
        return 1.0

    @property
    def relevant_label(self) -> float | None:
        """The smallest relevant label, as unscaled distance from the lower end of the label range; None if unknown."""
        return None


class Undeclared(Declares):
    """Wraps a dataset of another package that does not inherit from `Declares`.

    The wrapper computes the shape from the examples, and provides the dataset's judgements if it is an `EvaluationSet`.
    """

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
    """Returns the dataset itself if it inherits from `Declares`, else the dataset wrapped in `Undeclared`."""
    return dataset if isinstance(dataset, Declares) else Undeclared(dataset)


def weight_of(dataset: Dataset) -> float:
    """Returns the number of times that an epoch repeats a dataset: its `weight`, or 1 if it has no such attribute."""
    return float(getattr(dataset, "weight", 1.0))
