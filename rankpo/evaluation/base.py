"""Evaluator: the interface of evaluators of one dataset, and their results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rankpo.data.dataset import Dataset, Pieces
from rankpo.data.report import all_pairs
from rankpo.data.table import ExampleTable, open_table

if TYPE_CHECKING:
    from rankpo.models.base import RankingModel
    from rankpo.models.reference import Reference

Say = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """metrics: means by name. per_query: {query id: {name: value}}. run: {query id: {document id: score}}, or {}.

    undefined: the reason for each requested metric without a value, by name.
    """

    metrics: Mapping[str, float]
    per_query: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    run: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    undefined: Mapping[str, str] = field(default_factory=dict)


class Evaluator(ABC):
    """One data set and its metrics; `evaluate(model)` is called on all ranks and returns equal results."""

    name: str
    metrics: tuple[str, ...]
    dataset: Dataset
    cache_dir: str | Path
    say: Say
    retained = False  # Whether reports show metrics relative to the start model.
    cached = True  # Whether the start model's metrics may come from an earlier run, by `depends_on`.
    collection: str | None = None  # The name for means over several evaluators.

    def table(self, pieces: Pieces) -> ExampleTable:
        """The texts that `evaluate` scores, in the text store."""
        return open_table(self.cache_dir, [self.dataset], pieces, self.say)

    def pairs(self, table: ExampleTable) -> np.ndarray:
        """[P, 2] rows of `table`: pairs of a query and a judged candidate."""
        return all_pairs(table)

    def compare_with(  # noqa: B027 (most evaluators need no start model)
        self,
        model: RankingModel,
        autocast: Callable[[], AbstractContextManager[None]],
        reference: Reference | None,
    ) -> None:
        """Stores the start model and the loss's reference; called once, on all ranks, before the first update. autocast:
        that of the policy, so that precision does not change rewards."""

    def depends_on(self) -> tuple[object, ...]:
        """Values on which the metrics depend besides the model and the table; each is identified by its repr."""
        return (self.metrics,)

    def names(self) -> Iterator[str]:
        """Yields ids for run.trec, if the evaluator writes one."""
        return iter(())

    @abstractmethod
    def evaluate(self, model: RankingModel) -> Result: ...
