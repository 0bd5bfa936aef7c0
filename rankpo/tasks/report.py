"""task=report: one run, a comparison of runs, or a sweep, as one HTML file without network resources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rankpo.errors import ConfigError
from rankpo.storage.atomic import replace_text
from rankpo.tasks.base import Task

if TYPE_CHECKING:
    from rankpo.config.experiment import Experiment


@dataclass(frozen=True, kw_only=True)
class Report(Task):
    """runs: run directories, or a sweep's, which stands for its jobs. metrics: shown of evaluations, [] for all.

    baseline: the evaluated model that the others are compared with, by its name or its run's; None for the start
    model, else the run that most others were trained from. labels: {run: title}; runs of one title are one recipe.
    Texts come from the data sets that task=evaluate noted, and from eval_datasets where given.
    """

    runs: Sequence[str]
    metrics: Sequence[str] = ()
    baseline: str | None = None
    labels: Mapping[str, str] | None = None
    title: str = "rankpo"
    output: str = "report.html"

    def __post_init__(self) -> None:
        check_runs(self.runs)

    def __call__(self, experiment: Experiment) -> Path:
        """The written file."""
        from rankpo.report.page import Content, render
        from rankpo.report.runs import open_runs, sweeps_among
        from rankpo.runs.logger import MetricsLogger

        content = Content(
            title=self.title,
            runs=open_runs(self.runs),
            metrics=self.metrics,
            baseline=self.baseline,
            labels=self.labels or {},
            datasets=experiment.eval_datasets,
            sweeps=sweeps_among(self.runs),
        )
        try:
            page = render(content)
        except ValueError as error:
            raise ConfigError([str(error)]) from error
        path = Path(self.output)
        replace_text(path, page)
        MetricsLogger().say(f"{path} written")
        return path


def check_runs(runs: Sequence[str]) -> None:
    """Raises ValueError for no run, FileNotFoundError for a path that is no directory."""
    if not runs:
        raise ValueError("runs is empty; give run directories, such as task.runs=[runs/run]")
    for path in runs:
        if not Path(path).is_dir():
            raise FileNotFoundError(f"runs: {path} is no directory")
