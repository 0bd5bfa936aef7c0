"""Evaluation of held-out queries: ranking in a collection of their candidates, and the training loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path

from rankpo.data.dataset import Dataset, Pieces
from rankpo.data.holdout import Drawn, HeldOutPart, query_key
from rankpo.data.random_keys import text_key
from rankpo.data.readers.fields import normal
from rankpo.data.relevance import stated
from rankpo.data.shape import PEEKED, EvaluationSet
from rankpo.data.table import ExampleTable, open_table
from rankpo.data.text.conversations import plain_text
from rankpo.evaluation.base import Evaluator, Result, Say
from rankpo.models.base import RankingModel
from rankpo.types import Example


class Pool:
    """The candidates of all held-out queries as one collection; a text is irrelevant to queries that do not list it.

    Grades are those of the examples, or 1 and 0 for lists of positives and negatives.
    """

    ignore_identical_ids = False
    gain = "linear"

    def __init__(self, part: HeldOutPart) -> None:
        self.name = part.name
        self.part = part

    def fingerprint(self) -> str:
        return f"{self.part.fingerprint()}-pool"

    @cached_property
    def _examples(self) -> list[Example]:
        return list(self.part.examples())

    @cached_property
    def _first_of_query(self) -> dict[str, Example]:
        """The first example of each query, by the query's id."""
        found: dict[str, Example] = {}
        for example in self._examples:
            found.setdefault(_query_id(example), example)
        return found

    def query_prompt(self, query_id: str) -> str | None:
        return self._first_of_query[query_id].query_prompt

    @property
    def passage_prompt(self) -> str | None:
        """The prompt of all passages; None if they have different ones, since each text is one document."""
        prompts = {e.query_prompt if e.symmetric else e.passage_prompt for e in self._examples}
        return prompts.pop() if len(prompts) == 1 else None

    @property
    def symmetric(self) -> bool:
        return all(example.symmetric for example in self._examples)

    def queries(self) -> Iterator[tuple[str, str]]:
        for name, example in self._first_of_query.items():
            yield name, plain_text(example.query)

    def corpus(self) -> Iterator[tuple[str, str]]:
        yield from {_text_id(text): text for example in self._examples for text in example.candidates}.items()

    @cached_property
    def _grades(self) -> dict[str, dict[str, float]]:
        grades: dict[str, dict[str, float]] = {}
        for example in self._examples:
            known = stated(example)
            values = example.relevance if known is None else [float(relevant) for relevant in known]
            of_query = grades.setdefault(_query_id(example), {})
            for text, value in zip(example.candidates, values, strict=True):
                of_query[_text_id(text)] = max(value, of_query.get(_text_id(text), value))
        return grades

    def qrels(self) -> dict[str, dict[str, float]]:
        return {query: dict(judged) for query, judged in self._grades.items()}

    @property
    def relevant_from(self) -> float:
        """The smallest positive grade of the pool, so that every positive grade counts as relevant."""
        return min((grade for judged in self._grades.values() for grade in judged.values() if grade > 0), default=1.0)


def _query_id(example: Example) -> str:
    return f"{query_key(example.query):016x}"


def _text_id(text: str) -> str:
    return f"{text_key(normal(text)):016x}"


class RankedPart(HeldOutPart):
    """Held-out queries of a dataset, evaluated over the pool of all their candidates if their labels allow it.

    on_pairs: whether the data has only preferences between two texts.
    """

    def __init__(self, dataset: Dataset, drawn: Drawn, name: str, on_pairs: bool) -> None:
        super().__init__(dataset, drawn, name)
        self.on_pairs = on_pairs

    @property
    def judgements(self) -> EvaluationSet | None:
        if self.on_pairs or self.labels_single_texts or not self._has_grades():
            return None
        return Pool(self)

    @cached_property
    def _first(self) -> list[Example]:
        return list(islice(self.examples(), PEEKED))

    @property
    def labels_single_texts(self) -> bool:
        """Whether most queries have a single text with a score as its label, so that a search has no target."""
        singles = [example.relevance[0] for example in self._first if len(example.relevance) == 1]
        return 2 * len(singles) > len(self._first) and any(label != 1 for label in singles)

    @property
    def names_single_texts(self) -> bool:
        """Whether most queries have one relevant text and no other text."""
        singles = [example for example in self._first if len(example.candidates) == 1]
        return 2 * len(singles) > len(self._first) and not self.labels_single_texts

    def _has_grades(self) -> bool:
        """Whether labels are grades, which are >= 0 with some > 0."""
        labels = [label for example in self._first for label in example.relevance]
        return all(label >= 0 for label in labels) and any(label > 0 for label in labels)


class LossEvaluator(Evaluator):
    """Computes the training loss on held-out data, in batches of the run's batch size.

    measure: computes it with the current weights; the trainer sets it.
    """

    metrics = ("loss",)
    cached = False

    def __init__(self, name: str, datasets: Sequence[Dataset], cache_dir: str | Path, say: Say) -> None:
        self.name = name
        self.datasets = datasets
        self.cache_dir = cache_dir
        self.say = say
        self.measure: Callable[[], float] = self._not_yet

    def table(self, pieces: Pieces) -> ExampleTable:
        return open_table(self.cache_dir, self.datasets, pieces, self.say)

    def _not_yet(self) -> float:
        raise ValueError(f"{self.name}: the loss cannot be computed before the trainer exists")

    def evaluate(self, model: RankingModel) -> Result:
        return Result({"loss": self.measure()})
