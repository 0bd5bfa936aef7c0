"""Training from Python, with the functions `rankpo.train` and `rankpo.build`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, cast

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from rankpo.api.data import Given, given
from rankpo.api.objects import OwnLoss, own_loss
from rankpo.api.overrides import overrides_of, quoted
from rankpo.config.compose import compose
from rankpo.config.experiment import Experiment
from rankpo.config.messages import explain
from rankpo.config.places import CONFIG
from rankpo.errors import ConfigError, StorageError
from rankpo.models.base import RankingModel
from rankpo.models.load import load_saved
from rankpo.runs import processes
from rankpo.runs.callbacks import Callback
from rankpo.runs.folder import claim
from rankpo.tasks.base import require_data
from rankpo.tasks.train import Train
from rankpo.tasks.work import train as work
from rankpo.trainers.basic import BasicTrainer

T = TypeVar("T")
RECORDS = "records"  # The folder in cache_dir for records from Python.


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The arguments of `rankpo.train` and `rankpo.build`; see their documentation."""

    model: object = None
    loss: object = None
    data: object = None
    eval_data: object = None
    callbacks: Sequence[Callback] = ()
    overrides: Sequence[str] = ()
    keys: Mapping[str, object]

    def experiment(self) -> Experiment:
        """The checked experiment. Raises ConfigError."""
        own = own_loss(self.loss)
        base = [*self.overrides, *self._choices(own)]
        wanted = [*base, *_answered(lambda: overrides_of(self.keys, base), base)]
        first = _answered(lambda: compose([*wanted, "run_dir=."], _putting(own)), wanted)
        groups = {"datasets": self.data, "eval_datasets": self.eval_data}
        sets = {
            group: given(data, group, first.model.kind, first.cache_dir / RECORDS) for group, data in groups.items()
        }
        wanted += [item for found in sets.values() for item in found.overrides]
        if not any(item.startswith(("exp_name=", "run_dir=")) for item in wanted):
            wanted.append(f"exp_name={_free_name(first)}")
        experiment = _answered(lambda: compose(wanted, _putting(own)), wanted)
        return replace(_with_objects(experiment, sets), callbacks=tuple(self.callbacks))

    def _choices(self, own: OwnLoss | None) -> list[str]:
        choices = [f"loss={own.option}"] if own else [f"loss={self.loss}"] if self.loss is not None else []
        return [*choices, *_model(self.model)]


@dataclass(kw_only=True)
class Training:
    """A training before its first update.

    experiment: the checked config with its objects. trainer: the trainer, whose attributes hold all other parts, such as
    `policy` (the model), `loss`, `loader`, `optimizer`, `schedule`, `evaluators` and `callbacks`. Changes of these
    attributes before `train` take effect.
    """

    experiment: Experiment
    trainer: BasicTrainer
    _work: work.Training
    _state: list[Mapping[str, object]]

    def train(self) -> RankingModel:
        """Trains, writes FINAL, and returns the model with the FINAL weights."""
        with processes.own_state(self._state), claim(self.experiment.run_dir):
            self._work.begin()
        return final(self.experiment, self.trainer)


def build(arguments: Arguments) -> Training:
    """See `rankpo.build`."""
    experiment = arguments.experiment()
    task = experiment.task
    if not isinstance(task, Train):
        raise ConfigError([f"task={type(task).__name__.lower()} does not train; remove task"])
    require_data(task, experiment)
    with processes.own_state() as state:
        session = task.open(experiment)
        with session.claimed(experiment.run_dir):
            prepared = work.prepare(task, experiment, session)
        kept = state()
    if prepared is None:
        raise StorageError(f"{experiment.run_dir} holds a finished run; load its model with rankpo.load")
    return Training(experiment=prepared.experiment, trainer=prepared.trainer, _work=prepared, _state=kept)


def train(arguments: Arguments) -> RankingModel:
    """See `rankpo.train`."""
    return build(arguments).train()


def final(experiment: Experiment, trainer: BasicTrainer) -> RankingModel:
    """The model of FINAL on the device of the training."""
    return cast("RankingModel", load_saved(str(experiment.run_dir / "FINAL"), str(trainer.policy.device)))


def _model(model: object) -> list[str]:
    """The overrides for `model=`: an option, a folder, a hub id, or a model that was loaded from a folder."""
    if model is None:
        return []
    if isinstance(model, RankingModel):
        return [f"kind={model.kind}", "model=base", f"model.load_from={quoted(model.writer.origin)}"]
    if not isinstance(model, str | Path):
        raise ConfigError(
            [f"model must be an option, a folder, a hub id or a loaded model, got {type(model).__name__}"]
        )
    if (CONFIG / "model" / f"{model}.yaml").is_file():
        return [f"model={model}"]
    place = Path(model).expanduser()
    if place.is_dir():
        return ["model=base", f"model.load_from={quoted(str(place))}"]
    if str(model).count("/") == 1 and not str(model).startswith((".", "/", "~")):
        return ["model=base", f"model.name_or_path={quoted(str(model))}"]
    return [f"model={model}"]  # Hydra's message lists the options.


def _putting(own: OwnLoss | None) -> Callable[[DictConfig], object] | None:
    return None if own is None else own.put_into


def _answered(call: Callable[[], T], overrides: Sequence[str]) -> T:
    """Returns the result of a call. Converts errors of Hydra to a ConfigError with one line."""
    try:
        return call()
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError([explain(error, overrides)]) from error


def _with_objects(experiment: Experiment, sets: Mapping[str, Given]) -> Experiment:
    """The experiment with the dataset objects of the caller. The config identifies them by class and fingerprint."""
    for group, found in sets.items():
        if (own := found.own) is not None:
            node = {own.name: {"class": type(own).__qualname__, "fingerprint": own.fingerprint()}}
            config = {**experiment.config, group: node}
            objects = {"datasets": experiment.datasets, "eval_datasets": experiment.eval_datasets, group: [own]}
            experiment = replace(
                experiment, config=config, datasets=objects["datasets"], eval_datasets=objects["eval_datasets"]
            )
    return experiment


def _free_name(experiment: Experiment) -> str:
    """An unused run name LOSS-NUMBER, so that a notebook cell that is executed again starts a new run."""
    name = type(experiment.loss).__name__.removesuffix("Loss").lower() or "run"
    number = 1
    while (experiment.runs_dir / f"{name}-{number}").exists():
        number += 1
    return f"{name}-{number}"
