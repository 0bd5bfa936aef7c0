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
GRADE_DIGITS = 9  # In floats, 1/49 · 49 is not 1, so without rounding a grade of 1 would not be relevant.


class ListwiseEvaluator(Evaluator):
    """Scores every candidate of every query and compares the lists with their labels.

    Grades are the labels before scaling minus the smallest label; nDCG has gains 2^grade - 1. (Training uses labels
    scaled to [0, 1].) The dataset's relevant_from is the smallest relevant grade; by default it is 1 for scales longer
    than 1, else half the scale (0.5 for labels without a range). A digest of the text breaks ties, since files often
    list relevant texts first. Equal texts of a query count once, with the larger grade.
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
        """Returns metrics of scores [slots] of the table of this dataset."""
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
