"""Report: the keys of task=report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rankpo.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class Report(Task):
    """Writes one HTML report of several runs.

    runs: run directories; the directory of a sweep stands for all its jobs.
    metrics: the metrics of evaluations to show; [] shows all.
    baseline: the evaluated model to compare the others with, by its name or the name of its run. None takes the start
    model, or, without one, the run that most others were trained from.
    labels: {run: title}; runs with the same title are seeds of one recipe.
    Texts come from the datasets that task=evaluate recorded, and from eval_datasets if it is set. The call returns the
    path of the written file.
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
    """Raises ValueError if there is no run, and FileNotFoundError for a path that is not a directory."""
    if not runs:
        raise ValueError("runs is empty; give run directories, such as task.runs=[runs/run]")
    for path in runs:
        if not Path(path).is_dir():
            raise FileNotFoundError(f"runs: {path} is not a directory")
