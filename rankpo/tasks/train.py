"""Train: the keys of task=train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rankpo.evaluation.metrics import parse_metric
from rankpo.tasks.base import Task

DEFAULT_METRICS = ("ndcg@10", "ndcg@20", "mrr@10", "recall@100")


@dataclass(frozen=True, kw_only=True)
class Train(Task):
    """Trains and writes `run_dir`/FINAL. The call returns the metrics of the last evaluation.

    metrics: the metrics that are computed during training on the corpora among eval_datasets.
    """

    metrics: Sequence[str] = DEFAULT_METRICS

    work: ClassVar[str] = "rankpo.tasks.work.train"
    trains: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in self.metrics:
            parse_metric(name)

    def reads_datasets(self) -> bool:
        return True
