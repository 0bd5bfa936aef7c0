"""Evaluator of the correlation of a model's scores with the labels of pairs, for semantic similarity."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import pearsonr, spearmanr

from rankpo.data.dataset import Dataset
from rankpo.data.table import ExampleTable
from rankpo.evaluation.base import Evaluator, Result, Say

if TYPE_CHECKING:
    from rankpo.models.base import RankingModel


class ScoredPairsEvaluator(Evaluator):
    """`spearman` and `pearson` correlation of the scores of all pairs with their labels, as STS benchmarks report them.

    The score is the model's own: the cosine of an embedding model that normalises, the logit of a reranker. Labels
    may have any scale. If all labels or all scores are equal, the correlation is undefined, with the reason.
    """

    metrics: tuple[str, ...] = ("spearman", "pearson")

    def __init__(self, dataset: Dataset, cache_dir: str | Path, say: Say) -> None:
        self.name = dataset.name
        self.dataset = dataset
        self.cache_dir = cache_dir
        self.say = say

    def evaluate(self, model: RankingModel) -> Result:
        table = self.table(model.inputs.pieces())
        return self.measure(model.slot_scores(table), table)

    def measure(self, scores: np.ndarray, table: ExampleTable) -> Result:
        """Returns metrics of scores [slots] of the table of this dataset."""

        labels = np.asarray(table.relevance, dtype=np.float64)
        values = np.asarray(scores, dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError(f"eval_datasets.{self.name}: a score is {values[~np.isfinite(values)][0]}")
        counts = {"pairs": len(values)}
        for name, numbers in (("labels", labels), ("scores", values)):
            if len(np.unique(numbers)) < 2:
                reason = f"all {len(numbers)} {name} are equal"
                return Result({}, counts=counts, undefined=dict.fromkeys(self.metrics, reason))
        found = {"spearman": spearmanr(values, labels).statistic, "pearson": pearsonr(values, labels).statistic}
        return Result({name: float(value) for name, value in found.items()}, counts=counts)
