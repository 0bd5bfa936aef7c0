"""What a checkpoint holds: weights, optimizer, random states, and where in the data the run is. No pickle."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rankpo import distributed

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
    without_gain: int = 0
    stopped: bool = False
    start_metrics: dict[str, float] | None = None
    last_metrics: dict[str, float] | None = None


def save_state(trainer: BasicTrainer) -> None:
    """Writes checkpoints/step-N from the main process and drops those that need not be kept."""
    state, store = trainer.state, trainer.checkpoints
    states = _random_states()
    if distributed.rank() == 0:

        def write(folder: Path) -> None:
            save_file(trained_weights(trainer), folder / "weights.safetensors")
            save_optimizer(folder, trainer.optimizer, parameter_names(trainer))
            save_file(states, folder / "random.safetensors")

        store.save(state.step, write, {**asdict(state), "python_random": _python_state()})
        kept = {*trainer.settings.intermediate_checkpoints, *([] if state.best_step is None else [state.best_step])}
        store.keep(trainer.settings.keep_checkpoints, kept)
    distributed.barrier()


def load_state(trainer: BasicTrainer, step: int | None = None, weights_only: bool = False) -> None:
    """Continues from the newest valid checkpoint, or that of `step`; leaves all as it is where there is none."""
    store = trainer.checkpoints
    if step is None:
        checkpoint = store.newest_valid(trainer.logger.say)
    else:
        checkpoint = next((item for item in store.list() if item.step == step), None)
    if checkpoint is None:
        return
    weights = load_file(checkpoint.path / "weights.safetensors")
    for name, tensor in trained_weights(trainer).items():
        tensor.copy_(weights[name])
    if weights_only:
        return
    saved = checkpoint.state
    load_optimizer(checkpoint.path, trainer.optimizer, parameter_names(trainer))
    _restore_python(saved.pop("python_random"))
    _restore_random(load_file(checkpoint.path / "random.safetensors"))
    trainer.state = TrainerState(**saved)
    trainer.logger.say(f"continuing from {checkpoint.path}")


def trained_weights(trainer: BasicTrainer) -> dict[str, Tensor]:
    """The parameters that training changes, and the buffers, by name."""
    named = {name: parameter.data for name, parameter in trainer.policy.named_parameters() if parameter.requires_grad}
    return {name: tensor.contiguous() if not tensor.is_contiguous() else tensor for name, tensor in named.items()}


def parameter_names(trainer: BasicTrainer) -> dict[int, str]:
    """Name of every trained parameter by identity: optimizer state is kept by name, not by place."""
    return {id(parameter): name for name, parameter in trainer.policy.named_parameters() if parameter.requires_grad}


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
