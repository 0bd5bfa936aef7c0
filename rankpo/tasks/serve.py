"""Serve: the keys of task=serve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rankpo.retrieval.corpus import check_source
from rankpo.tasks.base import Task
from rankpo.tasks.report import check_runs


@dataclass(frozen=True, kw_only=True)
class Serve(Task):
    """Serves the report as a live page, with a search box over indexes.

    runs, metrics, baseline, labels, title: the keys of task=report.
    seconds: the interval at which run directories are checked for changes.
    indexes: folders of task=encode. models: for each index, the folder of the model that encoded it.
    corpus: the source of their texts, as for task=encode.
    minutes: the lifetime of the server; None runs it until Ctrl-C.
    """

    runs: Sequence[str]
    metrics: Sequence[str] = ()
    baseline: str | None = None
    labels: Mapping[str, str] | None = None
    title: str = "rankpo"
    indexes: Sequence[str] = ()
    models: Sequence[str] = ()
    corpus: str = "own"
    top_k: int = 10
    host: str = "127.0.0.1"
    port: int = 8765
    seconds: float = 5.0
    minutes: float | None = None

    work: ClassVar[str] = "rankpo.tasks.work.serve"

    def __post_init__(self) -> None:
        check_runs(self.runs)
        if len(self.indexes) != len(self.models):
            raise ValueError(
                f"models must name the folder that encoded each of indexes: got {len(self.models)} for {len(self.indexes)}"
            )
        if self.top_k < 1 or self.seconds <= 0 or not 0 <= self.port <= 65535:
            raise ValueError("top_k must be >= 1, seconds > 0 and port between 0 and 65535")
        if self.minutes is not None and self.minutes <= 0:
            raise ValueError(f"minutes must be > 0 or null, got {self.minutes}")
        if self.indexes:
            check_source(self.corpus, "corpus")
