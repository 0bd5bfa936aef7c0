"""What a checkpoint holds: weights, optimizer, random states, and where in the data the run is. No pickle."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rankpo.errors import StorageError
from rankpo.runs import processes
from rankpo.storage.folders import damage
from rankpo.trainers.strategies.base import OptimizerState

if TYPE_CHECKING:
    from rankpo.trainers.basic import BasicTrainer


@dataclass
class TrainerState:
    """Where a run is. step: updates done; it alone says which data comes next."""

    step: int = 0
    tokens: int = 0
    queries: int = 0
    best_value: float | None = None
    best_step: int | None = None
    best_metrics: dict[str, float] | None = None
    without_gain: int = 0
    stopped: bool = False
    loss_state: dict[str, float] = field(default_factory=dict)
    start_metrics: dict[str, float] | None = None
    last_metrics: dict[str, float] | None = None


def save_state(trainer: BasicTrainer) -> None:
    """Writes checkpoints/step-N from the main process and drops those that need not be kept."""
    state, store = trainer.state, trainer.checkpoints
    states = _random_states()
    scaler = trainer.accelerator.scaler
    extra = {
        "python_random": _python_state(),
        "running": trainer.running.state(processes.sum_over_ranks),
        "scaler": {} if scaler is None else scaler.state_dict(),
    }
    weights, optimizer = trainer.strategy.trained_weights(), trainer.strategy.optimizer_state()  # of all ranks together
    if processes.rank() == 0:

        def write(folder: Path) -> None:
            save_file(weights, folder / "weights.safetensors")
            save_optimizer(folder, optimizer)
            save_file(states, folder / "random.safetensors")

        store.save(state.step, write, {**asdict(state), **extra})
        per_epoch = trainer.loader.updates_per_epoch
        kept = {step for step in range(1, state.step + 1) if trainer.settings.is_intermediate(step, per_epoch)}
        kept |= set() if state.best_step is None else {state.best_step}
        store.keep(state.step, trainer.settings.keep_checkpoints, kept)
    processes.barrier()


def load_state(trainer: BasicTrainer) -> None:
    """Continues from the newest valid checkpoint; leaves all as it is where there is none."""
    checkpoint = trainer.checkpoints.newest_valid(trainer.logger.say)
    if checkpoint is None:
        return
    trainer.strategy.load_weights(load_file(checkpoint.path / "weights.safetensors"))
    trainer.strategy.load_optimizer_state(load_optimizer(checkpoint.path))
    saved = checkpoint.state
    _restore_python(saved.pop("python_random"))
    _restore_random(load_file(checkpoint.path / "random.safetensors"))
    # the sums of an unfinished log line are those of all ranks: one of them carries them on
    trainer.running.restore(saved.pop("running"), share=float(processes.rank() == 0), device=trainer.policy.device)
    scaler = saved.pop("scaler")
    if trainer.accelerator.scaler is not None and scaler:
        trainer.accelerator.scaler.load_state_dict(scaler)
    trainer.state = TrainerState(**saved)
    trainer.logger.say(f"continuing from {checkpoint.path}")


def load_best(trainer: BasicTrainer) -> None:
    """Puts the weights of `best_step` into the policy. Raises StorageError where they are gone or damaged."""
    path = trainer.checkpoints.folder / f"step-{trainer.state.best_step}"
    fault = damage(path) if path.exists() else "it is not there"
    if fault is not None:
        raise StorageError(f"trainer.final=best: {path} cannot be read ({fault}); set trainer.final=last")
    trainer.strategy.load_weights(load_file(path / "weights.safetensors"))


def save_optimizer(folder: Path, state: OptimizerState) -> None:
    """optimizer.safetensors: tensors as `parameter/key`; optimizer.json: the numbers."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for name, values in state.items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{name}/{key}"] = value.clone() if value.dim() == 0 else value  # one number may serve all
            elif value is not None:
                numbers[f"{name}/{key}"] = value
    save_file(tensors, folder / "optimizer.safetensors")
    (folder / "optimizer.json").write_text(json.dumps(numbers))


def load_optimizer(folder: Path) -> OptimizerState:
    """What `save_optimizer` wrote."""
    state: OptimizerState = {}
    stored = {**load_file(folder / "optimizer.safetensors"), **json.loads((folder / "optimizer.json").read_text())}
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


def _python_state() -> list[Any]:
    version, internal, gauss = random.getstate()
    return [version, list(internal), gauss]


def _restore_python(state: list[Any]) -> None:
    random.setstate((state[0], tuple(state[1]), state[2]))
