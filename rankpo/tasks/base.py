"""Task: the base class of tasks, with the keys that their yaml files name."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, ClassVar

from rankpo.errors import ConfigError

if TYPE_CHECKING:
    from rankpo.config.experiment import Experiment
    from rankpo.tasks.session import Session


# By kind: the dataset of a first file, what its records hold, and a dataset that needs no file.
DATA_BY_KIND = {
    "causal_lm": ("chat", 'records of "prompt", "chosen" and "rejected"', "toy_chat"),
    "listwise": ("ranked_lists", "queries with ranked lists of passages", "toy_lists"),
}
OTHER_DATA = ("rankpo", 'records of "query", "positives" and "negatives", or of a preference', "jobs")


class Task:
    """The keys of a task, and its call with the experiment.

    work: the name of the module whose `run(task, experiment)` does the work. The call imports it, since it needs torch
    and transformers, and the check of a config must not wait for them. needs: what the kind of the model must give, one
    of these; empty: nothing. trains: whether the loss is checked against the model and the data. several_processes:
    whether it may be started with more than one. in_place_of_datasets: the key that names a file instead.
    """

    work: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset()
    trains: ClassVar[bool] = False
    several_processes: ClassVar[bool] = True
    in_place_of_datasets: ClassVar[str] = ""

    def reads_datasets(self) -> bool:
        """Whether the task, with the values of its keys, takes texts or records from `datasets`."""
        return False

    def __call__(self, experiment: Experiment) -> object:
        """Runs the task. Returns its result, such as the rows of its table. Raises ConfigError for forgotten data."""
        require_data(self, experiment)
        if not self.work:
            raise TypeError(f"{type(self).__name__} must name its module in `work`, or define __call__")
        return import_module(self.work).run(self, experiment)

    def open(self, experiment: Experiment) -> Session:
        """The session of this process, see `open_session`."""
        from rankpo.tasks.session import open_session

        return open_session(experiment, f"task={type(self).__name__.lower()}", self.needs, self.several_processes)


def require_data(task: Task, experiment: Experiment) -> None:
    """Raises ConfigError with the keys to add where the task reads `datasets` and there are none."""
    if experiment.datasets or not task.reads_datasets():
        return
    name, holds, generated = DATA_BY_KIND.get(experiment.model.kind, OTHER_DATA)
    other = f"; or set {task.in_place_of_datasets}=FILE" if task.in_place_of_datasets else ""
    raise ConfigError(
        [
            f"datasets is not set, and task={type(task).__name__.lower()} reads it; add datasets={name} "
            f"datasets.{name}.path=FILE, a file with {holds}{other}; datasets={generated} is generated data to try"
        ]
    )
