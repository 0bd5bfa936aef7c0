"""The work of task=report: one run, a comparison of runs, or a sweep, as one HTML file without network resources."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rankpo.errors import ConfigError
from rankpo.report.page import Content, render
from rankpo.report.runs import open_runs, sweeps_among
from rankpo.runs.logger import MetricsLogger
from rankpo.storage.atomic import replace_text

if TYPE_CHECKING:
    from rankpo.config.experiment import Experiment
    from rankpo.tasks.report import Report


def run(task: Report, experiment: Experiment) -> Path:
    """Returns the path of the written file."""
    content = Content(
        title=task.title,
        runs=open_runs(task.runs),
        metrics=task.metrics,
        baseline=task.baseline,
        labels=task.labels or {},
        datasets=experiment.eval_datasets,
        sweeps=sweeps_among(task.runs),
    )
    try:
        page = render(content)
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    path = Path(task.output)
    replace_text(path, page)
    MetricsLogger().say(f"{path} written")
    return path
