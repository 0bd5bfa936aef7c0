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

from rankpo import distributed
from rankpo.checkpoint import CheckpointError, damage

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
        "running": trainer.running.state(distributed.sum_over_ranks),
        "scaler": {} if scaler is None else scaler.state_dict(),
    }
    if distributed.rank() == 0:

        def write(folder: Path) -> None:
            weights = {name: tensor.detach().contiguous() for name, tensor in trained_parameters(trainer).items()}
            save_file(weights, folder / "weights.safetensors")
            save_optimizer(folder, trainer.optimizer, parameter_names(trainer))
            save_file(states, folder / "random.safetensors")

        store.save(state.step, write, {**asdict(state), **extra})
        kept = {*trainer.settings.intermediate_checkpoints, *([] if state.best_step is None else [state.best_step])}
        store.keep(state.step, trainer.settings.keep_checkpoints, kept)
    distributed.barrier()


def load_state(trainer: BasicTrainer) -> None:
    """Continues from the newest valid checkpoint; leaves all as it is where there is none."""
    checkpoint = trainer.checkpoints.newest_valid(trainer.logger.say)
    if checkpoint is None:
        return
    load_weights(trainer, checkpoint.path)
    load_optimizer(checkpoint.path, trainer.optimizer, parameter_names(trainer))
    saved = checkpoint.state
    _restore_python(saved.pop("python_random"))
    _restore_random(load_file(checkpoint.path / "random.safetensors"))
    # the sums of an unfinished log line are those of all ranks: one of them carries them on
    trainer.running.restore(saved.pop("running"), share=float(distributed.rank() == 0), device=trainer.policy.device)
    scaler = saved.pop("scaler")
    if trainer.accelerator.scaler is not None and scaler:
        trainer.accelerator.scaler.load_state_dict(scaler)
    trainer.state = TrainerState(**saved)
    trainer.logger.say(f"continuing from {checkpoint.path}")


def load_best(trainer: BasicTrainer) -> None:
    """Puts the weights of `best_step` into the policy. Raises CheckpointError where they are gone or damaged."""
    path = trainer.checkpoints.folder / f"step-{trainer.state.best_step}"
    fault = damage(path) if path.exists() else "it is not there"
    if fault is not None:
        raise CheckpointError(f"trainer.final=best: {path} cannot be read ({fault}); set trainer.final=last")
    load_weights(trainer, path)


@torch.no_grad()
def load_weights(trainer: BasicTrainer, folder: Path) -> None:
    """Copies a checkpoint's weights into the policy's trained parameters, by name."""
    weights = load_file(folder / "weights.safetensors")
    for name, parameter in trained_parameters(trainer).items():
        parameter.copy_(weights[name])


def trained_parameters(trainer: BasicTrainer) -> dict[str, torch.nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: parameter for name, parameter in trainer.policy.named_parameters() if parameter.requires_grad}


def parameter_names(trainer: BasicTrainer) -> dict[int, str]:
    """Name of every trained parameter by identity: optimizer state is kept by name, not by place."""
    return {id(parameter): name for name, parameter in trained_parameters(trainer).items()}


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    return getattr(optimizer, "optimizer", optimizer)


def save_optimizer(folder: Path, optimizer: Any, names: dict[int, str]) -> None:
    """optimizer.safetensors: tensors as `parameter/key`; optimizer.json: the numbers."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for parameter, values in _inner(optimizer).state.items():
        for key, value in values.items():
            place = f"{names[id(parameter)]}/{key}"
            if isinstance(value, Tensor):
                tensors[place] = value.contiguous()
            elif value is not None:
                numbers[place] = value
    save_file(tensors, folder / "optimizer.safetensors")
    (folder / "optimizer.json").write_text(json.dumps(numbers))


def load_optimizer(folder: Path, optimizer: Any, names: dict[int, str]) -> None:
    """Puts back what `save_optimizer` wrote, by parameter name."""
    values: dict[str, dict[str, Any]] = {}
    stored = {**load_file(folder / "optimizer.safetensors"), **json.loads((folder / "optimizer.json").read_text())}
    for place, value in stored.items():
        name, _, key = place.rpartition("/")
        values.setdefault(name, {})[key] = value
    inner = _inner(optimizer)
    for group in inner.param_groups:
        for parameter in group["params"]:
            state = values.get(names[id(parameter)])
            if state is not None:
                # AdamW keeps its step count on the CPU, its moments beside the parameter
                moved = {
                    key: value.to(parameter.device) if isinstance(value, Tensor) and value.dim() else value
                    for key, value in state.items()
                }
                inner.state[parameter] = moved


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
