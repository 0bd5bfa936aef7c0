"""Lines that a training run logs at its start, with the most important values of the config."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rankpo.config.run_folder import CACHE
from rankpo.config.temperatures import scale_of
from rankpo.runs import processes

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
    temperature = _temperature(experiment)
    divided = "" if temperature is None else f" (temperature {temperature:g})"
    yield (
        f"loss {trainer.losses}{divided} · model {model.origin} ({model.kind}{adapters}) · {device}, {settings.precision} · "
        f"seed {experiment.seed}"
    )
    if temperature is not None:
        yield from _unfit_temperature(experiment, trainer, temperature)
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
    if (line := large_example(trainer)) is not None:
        yield line
    if settings.max_steps is None and trainer.total_steps < FEW:
        yield (
            f"only {trainer.total_steps} update{'s' if trainer.total_steps != 1 else ''} in all, so the model hardly changes; "
            f"for more updates, lower trainer.batch_size={settings.batch_size} or raise trainer.epochs={settings.epochs}"
        )


def _temperature(experiment: Experiment) -> float | None:
    """The temperature of the run's loss; None for a loss without one and for datasets with losses of their own."""
    return None if any(experiment.objectives) else experiment.config["loss"].get("temperature")


def _unfit_temperature(experiment: Experiment, trainer: BasicTrainer, temperature: float) -> Iterator[str]:
    """A warning if the checkpoint's files, read with the weights, have another scale than the default temperature."""
    model = experiment.model
    assumed, found = scale_of(model, experiment.explicit), model.scale(trainer.policy.settings)
    wanted = experiment.loss.default_temperature(found)
    if assumed != found and temperature == experiment.loss.default_temperature(assumed) != wanted:
        yield (
            f"warning: loss.temperature={temperature:g} is the default for {assumed}, but the scores of {model.origin} are "
            f"{found}; the default for them is loss.temperature={wanted:g}"
        )


def large_example(trainer: BasicTrainer) -> str | None:
    """One line if some group exceeds max_tokens and is held whole: its tokens, what they need, and the keys to change."""
    tokens, budget = trainer.largest_whole_group(), trainer.settings.token_budget
    if tokens <= budget:
        return None
    sharded = trainer.strategy.sharded
    by = "split parameters (FSDP2, ZeRO-3)" if sharded else f"models of kind {trainer.policy.kind}"
    needs = f"about {tokens / budget:.1f} times the activations of max_tokens"
    if trainer.memory is not None:
        needs = f"{trainer.memory.activations(tokens) / 1e9:.2g} GB of activations"
    other = "; one process or DDP computes it in parts" if sharded and trainer.policy.computes_in_parts else ""
    return (
        f"the largest example has {tokens:,} tokens, and max_tokens is {budget:,}: with {by} one forward pass holds it whole, "
        f"which needs {needs}; lower dataloader.group_size, dataloader.num_negatives or the maximum "
        f"lengths of model if that does not fit{other}"
    )
