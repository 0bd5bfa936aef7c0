"""task=report: one run, a comparison of runs, or a sweep, as one HTML file without network resources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankpo.errors import ConfigError
from rankpo.storage.atomic import replace_text
from rankpo.tasks.base import Task

if TYPE_CHECKING:
    from rankpo.config.experiment import Experiment


@dataclass(frozen=True, kw_only=True)
class Report(Task):
    """runs: run directories, or a sweep's, which stands for its jobs. metrics: shown of evaluations, [] for all.

    baseline: the evaluated model that the others are compared with, by its name in the report; None for the first.
    Query texts come from eval_datasets, as far as given.
    """

    runs: Sequence[str]
    metrics: Sequence[str] = ()
    baseline: str | None = None
    title: str = "rankpo"
    output: str = "report.html"

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("runs is empty; give run directories, such as task.runs=[.cache/run]")
        for path in self.runs:
            if not Path(path).is_dir():
                raise FileNotFoundError(f"runs: {path} is no directory")

    def __call__(self, experiment: Experiment) -> Path:
        """The written file."""
        from rankpo.report.page import render
        from rankpo.report.runs import open_runs, sweeps_among
        from rankpo.runs.logger import MetricsLogger

        texts: dict[str, str] = {}
        for dataset in experiment.eval_datasets:
            queries: Any = getattr(dataset, "queries", None)
            texts.update(queries() if queries is not None else {})
        try:
            runs, sweeps = open_runs(self.runs), sweeps_among(self.runs)
            page = render(runs, self.title, self.metrics, self.baseline, texts, sweeps)
        except ValueError as error:
            raise ConfigError([str(error)]) from error
        path = Path(self.output)
        replace_text(path, page)
        MetricsLogger().say(f"{path} written")
        return path
