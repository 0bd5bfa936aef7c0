"""Contents of a checkpoint: weights, optimizer, random states and position in the data, stored without pickle."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rankpo.errors import StorageError
from rankpo.runs import processes
from rankpo.runs.checkpoints import CheckpointStore
from rankpo.runs.running import RunningMetrics
from rankpo.storage.folders import damage
from rankpo.storage.json_files import read_json, write_json
from rankpo.trainers.averaging import WeightAverage
from rankpo.trainers.settings import TrainerSettings
from rankpo.trainers.strategies.base import OptimizerState, Strategy

EVALUATED = "weights.safetensors"  # The weights that evaluations and exports of a checkpoint use.
IN_TRAINING = "training.safetensors"  # The weights in training, if the former are their average.


@dataclass
class TrainerState:
    """The progress of a run.

    step: the number of completed updates. It determines the next data, except for streamed data. stream: the position of
    the loader in streamed data.
    """

    step: int = 0
    tokens: int = 0
    queries: int = 0
    best_value: float | None = None
    best_step: int | None = None
    best_metrics: dict[str, float] | None = None
    without_gain: int = 0
    stopped: bool = False
    loss_state: dict[str, float] = field(default_factory=dict)
    sparsity_state: dict[str, float] = field(default_factory=dict)
    stream: dict[str, int] = field(default_factory=dict)
    start_metrics: dict[str, float] | None = None
    last_metrics: dict[str, float] | None = None

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Sets the fields from a checkpoint."""
        for name, value in asdict(TrainerState(**saved)).items():
            setattr(self, name, value)


@dataclass(kw_only=True)
class Keeper:
    """Writes and reads the checkpoints of a run.

    store: the checkpoints' folder. scaler: fp16's gradient scaler, or None. device: the device of the running metrics.
    average: the average that evaluations and FINAL use; weights.safetensors of a checkpoint then holds it, and
    training.safetensors the weights in training.
    """

    store: CheckpointStore
    strategy: Strategy
    scaler: torch.amp.GradScaler | None
    settings: TrainerSettings
    updates_per_epoch: int
    device: torch.device
    average: WeightAverage | None = None

    def save(self, state: TrainerState, running: RunningMetrics) -> None:
        """Writes checkpoints/step-N from the main process and removes superseded checkpoints."""
        states = _random_states()
        extra = {
            "python_random": _python_state(),
            "running": running.state(processes.sum_over_ranks),
            "scaler": {} if self.scaler is None else self.scaler.state_dict(),
        }
        weights, optimizer = self.strategy.trained_weights(), self.strategy.optimizer_state()  # Collectives.
        averaged = None if self.average is None else self.average.whole()  # Another collective.
        if processes.rank() == 0:

            def write(folder: Path) -> None:
                save_file(weights if averaged is None else averaged, folder / EVALUATED)
                if averaged is not None:
                    save_file(weights, folder / IN_TRAINING)
                save_optimizer(folder, optimizer)
                save_file(states, folder / "random.safetensors")

            self.store.save(state.step, write, {**asdict(state), **extra})
            self.store.keep(state.step, self.settings.keep_checkpoints, self._kept(state))
        processes.barrier()

    def _kept(self, state: TrainerState) -> set[int]:
        """Returns the updates whose checkpoints remain: the configured intermediate ones and the best."""
        kept = {n for n in range(1, state.step + 1) if self.settings.is_intermediate(n, self.updates_per_epoch)}
        return kept | (set() if state.best_step is None else {state.best_step})

    def load(self, state: TrainerState, running: RunningMetrics, say: Callable[[str], None]) -> Path | None:
        """Restores the newest valid checkpoint and returns its folder, or None if there is none."""
        checkpoint = self.store.newest_valid(say)
        if checkpoint is None:
            return None
        self.strategy.load_weights(load_file(checkpoint.path / EVALUATED))
        if self.average is not None:
            self.average.values = self.strategy.local_weights()
            self.strategy.load_weights(load_file(checkpoint.path / IN_TRAINING))
        self.strategy.load_optimizer_state(load_optimizer(checkpoint.path))
        saved = checkpoint.state
        _restore_python(saved.pop("python_random"))
        _restore_random(load_file(checkpoint.path / "random.safetensors"))
        # The checkpoint stores sums over all ranks for the unfinished log line, so only one rank restores them.
        running.restore(saved.pop("running"), share=float(processes.rank() == 0), device=self.device)
        scaler = saved.pop("scaler")
        if self.scaler is not None and scaler:
            self.scaler.load_state_dict(scaler)
        state.restore(saved)
        return checkpoint.path

    def load_best(self, state: TrainerState) -> None:
        """Loads the weights of `best_step` into the model. Raises StorageError if they are missing or damaged."""
        path = self.store.folder / f"step-{state.best_step}"
        fault = damage(path) if path.exists() else "it does not exist"
        if fault is not None:
            raise StorageError(f"trainer.final=best: {path} cannot be read ({fault}); set trainer.final=last")
        self.strategy.load_weights(load_file(path / EVALUATED))

    def evaluated_weights(self) -> AbstractContextManager[None]:
        """Returns a context in which the model holds the weights to evaluate: the average if there is one."""
        return nullcontext() if self.average is None else self.average.in_use()

    def use_average(self) -> None:
        """Writes the average, if there is one, into the model."""
        if self.average is not None:
            self.average.use()


def save_optimizer(folder: Path, state: OptimizerState) -> None:
    """Writes optimizer.safetensors with tensors named `parameter/key`, and optimizer.json with the numbers."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, object] = {}
    for name, values in state.items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{name}/{key}"] = value.clone() if value.dim() == 0 else value  # A scalar can be shared.
            elif value is not None:
                numbers[f"{name}/{key}"] = value
    save_file(tensors, folder / "optimizer.safetensors")
    write_json(folder / "optimizer.json", numbers, indent=None)


def load_optimizer(folder: Path) -> OptimizerState:
    """Reads the files of `save_optimizer`."""
    state: OptimizerState = {}
    stored = {**load_file(folder / "optimizer.safetensors"), **read_json(folder / "optimizer.json")}
    for place, value in stored.items():
        name, _, key = place.rpartition("/")
        state.setdefault(name, {})[key] = value
    return state


def _random_states() -> dict[str, Tensor]:
    states = {"torch": torch.get_rng_state()}
    for number, state in enumerate(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []):
        states[f"cuda{number}"] = state
    return states


def _restore_random(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["torch"])
    cuda = [states[key] for key in sorted(states) if key.startswith("cuda")]
    if cuda and torch.cuda.is_available() and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(cuda)


def _python_state() -> list[object]:
    version, internal, gauss = random.getstate()
    return [version, list(internal), gauss]


def _restore_python(state: list[Any]) -> None:
    random.setstate((state[0], tuple(state[1]), state[2]))
