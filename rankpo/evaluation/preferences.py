"""Agreement of a model's scores with preference pairs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rankpo.data.dataset import Dataset
from rankpo.data.table import ExampleTable
from rankpo.evaluation.base import Evaluator, Result, Say
from rankpo.evaluation.metrics import preference_accuracy

if TYPE_CHECKING:
    from rankpo.models.base import RankingModel


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
        """[slots] by name: `scores` of the model, and further inputs of `further`."""
        return {"scores": model.slot_scores(table)}

    def further(
        self, model: object, table: ExampleTable, values: Mapping[str, np.ndarray], pairs: np.ndarray
    ) -> Mapping[str, float]:
        """Returns further metrics by name. pairs: [P, 2] slots, chosen first."""
        return {}

    def evaluate(self, model: RankingModel) -> Result:
        table = self.table(model.inputs.pieces())
        known = self.values(model, table)
        scores = known["scores"]
        examples, ordered = ordered_pairs(table)
        if not len(ordered):
            raise ValueError(f"eval_datasets.{self.name} holds no pair of different relevance")
        chosen, rejected = ordered.T
        accuracy, ties = preference_accuracy(scores[chosen], scores[rejected])
        metrics = {"accuracy": accuracy, "margin": float((scores[chosen] - scores[rejected]).mean())}
        metrics.update(self.further(model, table, known, ordered))
        values = (scores[chosen] > scores[rejected]) + 0.5 * (scores[chosen] == scores[rejected])
        per_query = {  # `group`: tests resample the pairs of one query together.
            table.id(example): {"accuracy": float(value), "group": int(table.query[example])}
            for example, value in zip(examples.tolist(), values, strict=True)
        }
        return Result(
            metrics, per_query, counts={"pairs": len(ordered), "ties": ties, "not_pairs": len(table) - len(ordered)}
        )


def ordered_pairs(table: ExampleTable) -> tuple[np.ndarray, np.ndarray]:
    """The examples with two candidates of different relevance, [P], and their slots, [P, 2], the preferred one first."""
    relevance = np.asarray(table.relevance)
    examples = np.flatnonzero(np.diff(table.offsets) == 2)
    slots = np.asarray(table.offsets)[examples][:, None] + np.arange(2)
    known = relevance[slots]
    swapped = known[:, 0] < known[:, 1]
    slots[swapped] = slots[swapped][:, ::-1]
    differ = known[:, 0] != known[:, 1]
    return examples[differ], slots[differ]
