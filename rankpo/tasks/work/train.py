"""The work of task=train: the run directory, the start or continuation of a run, and its training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rankpo.config.experiment import with_precision
from rankpo.config.moved import comparable
from rankpo.config.origin import origin_of
from rankpo.errors import ConfigError
from rankpo.runs import origin, processes
from rankpo.runs.folder import enter_run_dir, start_again
from rankpo.runs.logger import MetricsLogger
from rankpo.tasks.work.assemble import assemble
from rankpo.tasks.work.start_lines import start_lines
from rankpo.trainers.muon import Muon
from rankpo.trainers.strategies.choose import name_of, unfit

if TYPE_CHECKING:
    from accelerate import Accelerator

    from rankpo.config.experiment import Experiment
    from rankpo.tasks.session import Session
    from rankpo.tasks.train import Train
    from rankpo.trainers.basic import BasicTrainer


def run(task: Train, experiment: Experiment) -> Mapping[str, float]:
    """Returns the metrics of the last evaluation, or {} if the run is already finished."""
    session = task.open(experiment)
    with session.claimed(experiment.run_dir):
        training = prepare(task, experiment, session)
        return {} if training is None else training.begin()


@dataclass(frozen=True, kw_only=True)
class Training:
    """A trainer with its session. experiment: the experiment with the precision of the session."""

    experiment: Experiment
    session: Session
    trainer: BasicTrainer

    def begin(self) -> Mapping[str, float]:
        """Trains from the start, or with resume=auto from the newest checkpoint, and writes FINAL.

        The caller holds the lock of the run directory. Returns the metrics of the last evaluation.
        """
        trainer, experiment = self.trainer, self.experiment
        if self.session.main:
            _note_origin(experiment)
        if experiment.resume == "auto":
            trainer.watch.resume()
        for line in start_lines(experiment, trainer):
            trainer.logger.say(line)
        return trainer.train()


def prepare(task: Train, experiment: Experiment, session: Session) -> Training | None:
    """Prepares the run directory and returns the trainer, or None if the run is already finished."""
    experiment = with_precision(experiment, session.precision)
    refuse_unfit(experiment, session.accelerator)
    unfinished = _enter(experiment, session.logger.say) if session.main else True
    if not processes.broadcast_object(unfinished):
        session.logger.say(f"{experiment.run_dir} is already finished; its FINAL is unchanged")
        return None
    logger = MetricsLogger(experiment.run_dir, main=session.main, tracker=experiment.tracker, config=experiment.config)
    trainer = assemble(experiment, session.accelerator, logger, task.metrics)
    return Training(experiment=experiment, session=session, trainer=trainer)


def _enter(experiment: Experiment, say: Callable[[str], None]) -> bool:
    """Prepares the run directory, and returns whether the run still has to be trained.

    Raises StorageError for an existing run whose config, data or start weights have changed.
    """
    unfinished = enter_run_dir(
        experiment.run_dir, experiment.config, experiment.overwrite, experiment.resume, comparable
    )
    begun = not unfinished or (experiment.run_dir / "checkpoints").exists()
    if begun and not experiment.overwrite:
        origin.compare(experiment.run_dir, origin_of(experiment), experiment.allow_changes, say)
    return unfinished


def _note_origin(experiment: Experiment) -> None:
    """Removes an earlier run that overwrite=true replaces, and writes the origin of this run."""
    if experiment.overwrite:
        start_again(experiment.run_dir, experiment.config)
    if not (experiment.run_dir / origin.FILE).exists():
        origin.note(experiment.run_dir, origin_of(experiment))


def refuse_unfit(experiment: Experiment, accelerator: Accelerator) -> None:
    """Raises ConfigError for combinations that the launched strategy does not support, before any file access."""
    evaluated = bool(experiment.eval_datasets)
    name, quantization = name_of(accelerator), experiment.model.quantization
    if quantization is not None and name in ("FSDP", "DEEPSPEED-3"):
        raise ConfigError(
            [f"model.quantization={quantization} cannot be sharded over processes; start it without {name}"]
        )
    averaged = experiment.settings.ema is not None
    if experiment.optimizer.load() is Muon and (name == "FSDP" or name.startswith("DEEPSPEED")):
        raise ConfigError([f"optimizer=muon needs whole matrices, and {name} divides them; set optimizer=adamw"])
    if problem := unfit(name, experiment.model.gives, experiment.loss, evaluated, averaged):
        raise ConfigError([problem])
