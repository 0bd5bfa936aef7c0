"""Evaluator of ranking metrics on given candidate lists with labels, for any model with scores [B, G]."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rankpo.data.shape import Evaluable
from rankpo.data.table import ExampleTable
from rankpo.evaluation.base import Evaluator, Result, Say
from rankpo.evaluation.rules import Rules

if TYPE_CHECKING:
    from rankpo.models.base import RankingModel

FURTHER_METRICS = ("map", "auc", "rankpo/auc@100")
GRADE_DIGITS = 9  # 1/49 · 49 is not 1 in floats, and a grade of 1 would not be relevant


class ListwiseEvaluator(Evaluator):
    """Every candidate of every query is scored, and the lists compared with their labels.

    Grades are the labels as they were before scaling, less the smallest: gains of nDCG are 2^grade - 1 of these, while
    training sees the scaled ones, in [0, 1]. Of a scale longer than 1, a grade of 1 is relevant, else half the scale
    (of labels without a range, 0.5), unless the dataset's relevant_from says. Ties go by a digest of the text, so that the order of a file never breaks one:
    files list the relevant first. Equal texts of a query count once, with the larger grade.
    """

    def __init__(self, dataset: Evaluable, cache_dir: str | Path, metrics: Sequence[str], say: Say) -> None:
        self.name = dataset.name
        self.metrics = tuple(dict.fromkeys((*metrics, *FURTHER_METRICS)))
        self.dataset = dataset
        self.cache_dir = cache_dir
        self.say = say
        self.scale = float(dataset.label_scale)
        unsaid = 1.0 if self.scale > 1 else self.scale / 2
        said = dataset.relevant_label
        threshold = round(unsaid if said is None else said, GRADE_DIGITS)
        gain = "exp" if dataset.judgements is None else dataset.judgements.gain
        self.rules = Rules(relevant_from=threshold, gain=gain, ignore_identical_ids=False)

    def depends_on(self) -> tuple[object, ...]:
        return (self.metrics, self.scale, self.rules)

    def evaluate(self, model: RankingModel) -> Result:
        table = self.table(model.inputs.pieces())
        return self.measure(model.slot_scores(table), table)

    def measure(self, scores: np.ndarray, table: ExampleTable) -> Result:
        """Metrics of these scores, [slots] of the table of this dataset."""
        run: dict[str, dict[str, float]] = {}
        qrels: dict[str, dict[str, float]] = {}
        for number, example in enumerate(self.dataset.examples()):
            name = example.id if example.id not in run else f"{example.id}#{number}"
            run[name], qrels[name] = {}, {}
            values = scores[table.slots(number)].tolist()
            for text, relevance, score in zip(example.candidates, example.relevance, values, strict=True):
                document = hashlib.sha256(text.encode()).hexdigest()[:16]
                run[name][document] = score
                grade = round(relevance * self.scale, GRADE_DIGITS)
                qrels[name][document] = max(qrels[name].get(document, 0.0), grade)
        evaluation = self.rules.measure(run, qrels, self.metrics)
        return Result(evaluation.metrics, evaluation.per_query, run, evaluation.counts, evaluation.undefined)
