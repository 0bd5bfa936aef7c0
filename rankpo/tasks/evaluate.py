"""Evaluate: the keys of task=evaluate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rankpo.evaluation.metrics import parse_metric
from rankpo.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class Evaluate(Task):
    """Evaluates one model, or all models of a run, and writes metrics.json, per_query.jsonl and run.trec.

    run: a run directory, whose start model, checkpoints and FINAL are evaluated; None evaluates the model of the config.
    `retention/…` is the ratio of a retrieval metric to the same metric of the start model.
    start: a folder or hub id to compute retention against without a run; its own metrics appear in the table only.
    rankpo: adds rankpo's own variants of metrics. top_k: documents kept for each query.
    The call returns the table's rows, one for each model.
    """

    run: str | None = None
    start: str | None = None
    metrics: Sequence[str] = ("ndcg@10", "ndcg@20", "mrr@10", "recall@20", "recall@100", "map@100")
    rankpo: bool = False
    top_k: int = 100
    output: str = "evaluation"

    work: ClassVar[str] = "rankpo.tasks.work.evaluate"

    def __post_init__(self) -> None:
        for name in self.metrics:
            parse_metric(name)
        if self.top_k < 1:
            raise ValueError(f"top_k must be >= 1, got {self.top_k}")
        if self.run is not None and not Path(self.run).is_dir():
            raise ValueError(f"run={self.run}: no such run directory")
        if self.run is not None and self.start is not None:
            raise ValueError(
                f"start must be null with run, because the run is compared with its own start model; got {self.start!r}"
            )
