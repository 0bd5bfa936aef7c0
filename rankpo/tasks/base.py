"""Task and Session: the base class of tasks, and the processes of a running task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from rankpo.config.experiment import require_data
from rankpo.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from rankpo.config.experiment import Experiment
    from rankpo.models.base import RankingModel
    from rankpo.models.kind import ModelKind
    from rankpo.runs.logger import MetricsLogger

Model = TypeVar("Model", bound="RankingModel")

GIVERS = {"vectors": "embedding", "pairs": "reranker", "lists": "listwise", "text": "causal_lm"}  # need: kind to try


@dataclass(frozen=True, kw_only=True)
class Session:
    """The processes of a task. logger: of the console; only the first process's is heard. precision: trainer.precision."""

    accelerator: Accelerator
    logger: MetricsLogger
    precision: str

    @property
    def main(self) -> bool:
        return self.logger.main

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def prepared(self, model: Model) -> Model:
        """The model on the device of this process, whose forward passes run in the precision, as in training."""
        if self.precision != model.precision:
            model.precision = self.precision
            model.forward = in_precision(model.forward, self.accelerator)  # type: ignore[method-assign]
        return model.to(self.device)

    @contextmanager
    def claimed(self, folder: Path) -> Iterator[None]:
        """Holds the folder while the task writes there. Raises StorageError where another task has it."""
        from rankpo.runs.folder import claim

        if not self.main:
            yield
            return
        with claim(folder):
            yield


def in_precision(forward: Callable[..., object], accelerator: Accelerator) -> Callable[..., object]:
    """The forward pass under the accelerator's autocast, its outputs in float32: what `accelerate` does to a model."""
    from accelerate.utils import convert_outputs_to_fp32

    def run(*arguments: Any, **named: Any) -> Any:
        with accelerator.autocast():
            return forward(*arguments, **named)

    wrapped: Callable[..., Any] = convert_outputs_to_fp32(run)
    return wrapped


class Task:
    """A task, called with the experiment.

    needs: what the kind of the model must give, one of these; empty: nothing. trains: whether the loss is checked
    against the model and the data. several_processes: whether it may be started with more than one.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    trains: ClassVar[bool] = False
    several_processes: ClassVar[bool] = True

    def open(self, experiment: Experiment) -> Session:
        """The session of this process: device, precision, random seed. Raises ConfigError for a kind that the task
        cannot use, and for more processes than it may have."""
        from rankpo.runs import processes
        from rankpo.runs.logger import MetricsLogger
        from rankpo.tasks.seeds import seed_everything

        require(experiment.model, self.needs, f"task={type(self).__name__.lower()}")
        require_data(experiment)
        settings = experiment.settings
        accelerator = processes.make_accelerator(settings.precision, settings.timeout_minutes)
        if processes.world_size() > 1 and not self.several_processes:
            processes.shut_down()
            raise ConfigError([f"task={type(self).__name__.lower()} is one process; start it with python launch.py"])
        seed_everything(experiment.seed)  # random weights and new heads are the same on every rank and in every task
        logger = MetricsLogger(main=processes.rank() == 0)
        return Session(accelerator=accelerator, logger=logger, precision=settings.precision)

    def reads_datasets(self) -> bool:
        """Whether the task, with the values of its keys, takes texts or records from `datasets`."""
        return False

    def __call__(self, experiment: Experiment) -> object:
        raise TypeError(f"{type(self).__name__} must say what the task does")


def require(model: ModelKind, needs: frozenset[str], who: str) -> None:
    """Raises ConfigError if the model's kind gives none of `needs`. who: the name of the consumer, for the message."""
    if needs and not needs & model.gives:
        kinds = " or ".join(f"kind={GIVERS[need]}" for need in sorted(needs, key=list(GIVERS).index))
        raise ConfigError([f"{who} needs {kinds}, and this model is of kind {model.kind}; add {kinds}"])
