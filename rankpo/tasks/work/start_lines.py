"""Lines that a training run logs at its start, with the most important values of the config."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rankpo.config.run_folder import CACHE
from rankpo.runs import processes
from rankpo.trainers.largest import remark

if TYPE_CHECKING:
    from rankpo.config.experiment import Experiment
    from rankpo.trainers.basic import BasicTrainer

FEW = 10  # Fine-tuning with fewer updates hardly changes a model.


def start_lines(experiment: Experiment, trainer: BasicTrainer) -> Iterator[str]:
    """Yields lines with the run directory, the loss and model, the data, the number of updates, and the memory.

    Further lines warn of an example that exceeds max_tokens and is held whole, and of fewer updates than `FEW`.
    """
    settings, model = experiment.settings, experiment.model
    began = " (the default of an earlier version)" if CACHE in experiment.run_dir.parts[:1] else ""
    yield f"run directory {experiment.run_dir}{began}: all settings are in its config.json"
    device = f"{processes.world_size()} × {trainer.accelerator.device.type}"
    adapters = ", LoRA" if model.use_peft else ""
    yield (
        f"loss {trainer.losses} · model {model.origin} ({model.kind}{adapters}) · {device}, {settings.precision} · "
        f"seed {experiment.seed}"
    )
    names = ", ".join(dataset.name for dataset in experiment.datasets)
    rate = experiment.optimizer.arguments.get("lr")
    optimizer = experiment.optimizer.target.rpartition(".")[2]
    yield (
        f"data {names}: {trainer.loader.described}, trainer.batch_size={settings.batch_size}, "
        f"{trainer.total_steps:,} update{'s' if trainer.total_steps != 1 else ''} in all · {optimizer}, learning rate "
        f"{rate}, {experiment.schedule.kind}"
    )
    if trainer.memory is not None:
        yield trainer.memory.line(trainer.settings.token_budget)
    if (line := remark(trainer)) is not None:
        yield line
    if settings.max_steps is None and trainer.total_steps < FEW:
        yield (
            f"only {trainer.total_steps} update{'s' if trainer.total_steps != 1 else ''} in all, so the model hardly changes; "
            f"for more updates, lower trainer.batch_size={settings.batch_size} or raise trainer.epochs={settings.epochs}"
        )
