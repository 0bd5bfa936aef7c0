"""Report: the keys of task=report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rankpo.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class Report(Task):
    """runs: run directories, or a sweep's, which stands for its jobs. metrics: shown of evaluations, [] for all.

    baseline: the evaluated model that the others are compared with, by its name or its run's; None for the start
    model, else the run that most others were trained from. labels: {run: title}; runs of one title are one recipe.
    Texts come from the data sets that task=evaluate noted, and from eval_datasets where given. The call returns the
    written file.
    """

    runs: Sequence[str]
    metrics: Sequence[str] = ()
    baseline: str | None = None
    labels: Mapping[str, str] | None = None
    title: str = "rankpo"
    output: str = "report.html"

    work: ClassVar[str] = "rankpo.tasks.work.report"

    def __post_init__(self) -> None:
        check_runs(self.runs)


def check_runs(runs: Sequence[str]) -> None:
    """Raises ValueError for no run, FileNotFoundError for a path that is no directory."""
    if not runs:
        raise ValueError("runs is empty; give run directories, such as task.runs=[runs/run]")
    for path in runs:
        if not Path(path).is_dir():
            raise FileNotFoundError(f"runs: {path} is no directory")
