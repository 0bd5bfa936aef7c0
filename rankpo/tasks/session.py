"""Session: the processes, the precision and the console of a running task."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar, cast

from accelerate.utils import convert_outputs_to_fp32

from rankpo.errors import ConfigError
from rankpo.runs import processes, threads
from rankpo.runs.folder import claim
from rankpo.runs.launcher import second_fsdp
from rankpo.runs.logger import MetricsLogger
from rankpo.runs.precision import settled_precision
from rankpo.tasks.seeds import seed_everything

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from rankpo.config.experiment import Experiment
    from rankpo.models.base import RankingModel
    from rankpo.models.kind import AnyKind

Model = TypeVar("Model", bound="RankingModel")
Given = ParamSpec("Given")
Output = TypeVar("Output")

# For each need, the kind to suggest.
GIVERS = {"vectors": "embedding", "pairs": "reranker", "lists": "listwise", "text": "causal_lm"}


@dataclass(frozen=True, kw_only=True)
class Session:
    """The processes of a task.

    logger: writes to the console of the first process only.
    precision: trainer.precision, with "auto" replaced by the chosen precision.
    """

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
        """The model on the device of this process, with forward passes in `precision`, as in training."""
        if self.precision != model.precision:
            model.precision = self.precision
            model.forward = in_precision(model.forward, self.accelerator)  # type: ignore[method-assign]
        return model.to(self.device)

    @contextmanager
    def claimed(self, folder: Path) -> Iterator[None]:
        """Locks the folder while the task writes to it. Raises StorageError if another task holds the lock."""
        if not self.main:
            yield
            return
        with claim(folder):
            yield


def open_session(experiment: Experiment, who: str, needs: frozenset[str], several_processes: bool) -> Session:
    """The session of this process: device, precision, random seed.

    who: the name of the task in messages. Raises ConfigError for a kind that gives none of `needs`, and for several
    processes if the task supports one only.
    """
    require(experiment.model, needs, who)
    settings = experiment.settings
    precision = settled_precision(settings.precision)
    upgraded = second_fsdp(os.environ)
    accelerator = processes.make_accelerator(precision, settings.timeout_minutes)
    if processes.world_size() > 1 and not several_processes:
        processes.shut_down()
        raise ConfigError([f"{who} runs in one process only; start it with python launch.py"])
    seed_everything(experiment.seed)  # random weights and new heads are the same on every rank and in every task
    logger = MetricsLogger(main=processes.rank() == 0)
    if upgraded:
        logger.say(upgraded)
    if settings.precision == "auto" and precision != "fp32":
        logger.say(f"precision {precision}, with TF32 products on a GPU; set trainer.precision=fp32 for exact float32")
    if accelerator.device.type == "cpu" and (line := threads.thread_advice()):
        logger.say(line)
    return Session(accelerator=accelerator, logger=logger, precision=precision)


def in_precision(forward: Callable[Given, Output], accelerator: Accelerator) -> Callable[Given, Output]:
    """The forward pass under the accelerator's autocast, with outputs in float32, as `accelerate` prepares a model."""

    def run(*arguments: Given.args, **named: Given.kwargs) -> Output:
        with accelerator.autocast():
            return forward(*arguments, **named)

    return cast("Callable[Given, Output]", convert_outputs_to_fp32(run))


def require(model: AnyKind, needs: frozenset[str], who: str) -> None:
    """Raises ConfigError if the model's kind gives none of `needs`. who: the name of the consumer, for the message."""
    if needs and not needs & model.gives:
        kinds = " or ".join(f"kind={GIVERS[need]}" for need in sorted(needs, key=list(GIVERS).index))
        raise ConfigError([f"{who} needs {kinds}, and this model is of kind {model.kind}; add {kinds}"])
