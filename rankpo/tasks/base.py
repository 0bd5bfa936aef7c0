"""Task: the base class of tasks, with the keys that their yaml files name."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, ClassVar

from rankpo.errors import ConfigError

if TYPE_CHECKING:
    from rankpo.config.experiment import Experiment
    from rankpo.tasks.session import Session


# For each kind: the dataset to suggest for a first file, the content of its records, and a dataset without a file.
DATA_BY_KIND = {
    "causal_lm": ("chat", 'records of "prompt", "chosen" and "rejected"', "toy_chat"),
    "listwise": ("ranked_lists", "queries with ranked lists of passages", "toy_lists"),
}
OTHER_DATA = ("rankpo", 'records of "query", "positives" and "negatives", or of a preference', "jobs")


class Task:
    """The keys of a task, and its call with the experiment.

    work: the name of the module whose `run(task, experiment)` does the work. The call imports it late, because the
    module needs torch and transformers, and a config can be checked without them.
    needs: outputs of which the kind of the model must give at least one; empty means no requirement.
    trains: whether the loss is checked against the model and the data.
    several_processes: whether the task supports more than one process.
    in_place_of_datasets: the key of a file that the task can read in place of datasets.
    """

    work: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset()
    trains: ClassVar[bool] = False
    several_processes: ClassVar[bool] = True
    in_place_of_datasets: ClassVar[str] = ""

    def reads_datasets(self) -> bool:
        """Whether the task reads texts or records from `datasets`, given the values of its keys."""
        return False

    def __call__(self, experiment: Experiment) -> object:
        """Runs the task. Returns its result, such as the rows of its table. Raises ConfigError for missing data."""
        require_data(self, experiment)
        if not self.work:
            raise TypeError(f"{type(self).__name__} must name its module in `work`, or define __call__")
        return import_module(self.work).run(self, experiment)

    def open(self, experiment: Experiment) -> Session:
        """The session of this process, see `open_session`."""
        from rankpo.tasks.session import open_session

        return open_session(experiment, f"task={type(self).__name__.lower()}", self.needs, self.several_processes)


def require_data(task: Task, experiment: Experiment) -> None:
    """Raises ConfigError, with the keys to add, if the task reads `datasets` and there are none."""
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
