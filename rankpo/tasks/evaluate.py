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
    """Metrics of the model of the config; or of a `run`: its start model, its checkpoints and FINAL, with `retention/…`,
    each retrieval metric over the start model's. start: a folder or hub id to measure retention against without a run;
    its own numbers stand in the table only. rankpo: its own variants too. Writes metrics.json, per_query.jsonl and
    run.trec. The call returns the table's rows, one for each model.
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
                f"start must be null with run, whose own start model it is compared with, got {self.start!r}"
            )
