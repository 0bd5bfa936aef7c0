"""The parts of a training run: data, evaluators, model, reference and trainer, made in the order of their cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from rankpo.data.report import Report, data_report, lines, write_report
from rankpo.data.shape import declared
from rankpo.data.table import open_table
from rankpo.models.inputs import TextInputs
from rankpo.models.load import ignore
from rankpo.runs import processes
from rankpo.runs.checkpoints import CheckpointStore
from rankpo.tasks.description import describe
from rankpo.tasks.evaluators import check_best_metric, make_evaluators
from rankpo.tasks.models import trained_kind
from rankpo.tasks.optimizer import make_optimizer
from rankpo.tasks.priors import check_prior
from rankpo.tasks.references import StartModel
from rankpo.tasks.seeds import seed_everything
from rankpo.tasks.train import DEFAULT_METRICS
from rankpo.tasks.work.holdout import HeldOut, drawn_of, held_out, trained_parts
from rankpo.tasks.work.lessons import all_needs, lessons_of, material, objective, trainer_of, weights
from rankpo.tasks.work.memory import memory_parts
from rankpo.trainers.baseline import Baseline

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    from rankpo.config.experiment import Experiment
    from rankpo.data.holdout import Drawn
    from rankpo.data.loaders.ranking import DataLoader
    from rankpo.data.table import ExampleTable
    from rankpo.evaluation.base import Evaluator
    from rankpo.models.base import RankingModel
    from rankpo.models.inputs import Inputs
    from rankpo.runs.logger import MetricsLogger
    from rankpo.tasks.work.lessons import Material
    from rankpo.trainers.basic import BasicTrainer
    from rankpo.trainers.parts import SaveFinal


def assemble(
    experiment: Experiment, accelerator: Accelerator, logger: MetricsLogger, metrics: Sequence[str] = DEFAULT_METRICS
) -> BasicTrainer:
    """The trainer of an experiment. Weights, reference and optimizer are made last, after all checks of the data."""
    seed_everything(experiment.seed)
    inputs = experiment.model.open_inputs(logger.say, experiment.explicit)
    drawn = drawn_of(experiment, logger.say)
    lessons = lessons_of(experiment, trained_parts(experiment.datasets, drawn))
    for lesson in lessons:
        check_prior(inputs.settings, lesson.loss)
    held = HeldOut()
    if drawn is not None:
        held = held_out(experiment, lessons_of(experiment, experiment.datasets), drawn, metrics, logger.say)
    evaluators = [*make_evaluators(experiment, metrics, logger.say), *held.evaluators]
    settings = held.settings(experiment.settings)
    check_best_metric(settings.best_metric, evaluators)
    materials = [material(experiment, inputs, lesson, logger.say) for lesson in lessons]
    replay = _replay(experiment, inputs, drawn, logger.say)
    if logger.main:
        report_data(experiment, inputs, materials, evaluators, logger.say)
    model = _on_device(experiment, inputs, [item.table for item in materials], accelerator, logger.say)
    start = StartModel(
        experiment=experiment,
        model=model,
        say=logger.say,
        autocast=accelerator.autocast,
        whole=len(materials) == 1,
        streamed=any(declared(dataset).streaming for dataset in experiment.datasets),
    )
    objectives = [objective(start, item) for item in materials]
    reference = next((item.reference for item in objectives if item.reference is not None), None)
    for evaluator in evaluators:
        evaluator.compare_with(model, accelerator.autocast, reference)
    parts = {**_parts(experiment, inputs, model, accelerator, logger), "evaluators": evaluators}
    settled = replace(experiment, settings=settings)
    parts |= memory_parts(settled, model, materials, objectives, accelerator, logger.main)
    parts |= _baseline(experiment, model, accelerator, evaluators, logger.say)
    trainer = trainer_of(experiment, objectives, replay, parts)
    held.measure_losses(trainer, inputs, start)
    return trainer


def _parts(
    experiment: Experiment, inputs: Inputs, model: RankingModel, accelerator: Accelerator, logger: MetricsLogger
) -> dict[str, object]:
    """The arguments of a trainer that do not depend on its data."""
    return {
        "accelerator": accelerator,
        "policy": model,
        "optimizer": make_optimizer(experiment, model),
        "schedule": experiment.schedule,
        "checkpoints": _checkpoints(experiment, accelerator),
        "logger": logger,
        "save_final": _saver(experiment, inputs, logger.say),
        "callbacks": experiment.callbacks,
    }


def _checkpoints(experiment: Experiment, accelerator: Accelerator) -> CheckpointStore:
    """The checkpoints of the run directory. Incomplete ones of an interrupted run are removed."""
    checkpoints = CheckpointStore(experiment.run_dir)
    if accelerator.is_main_process:
        checkpoints.clean()
    return checkpoints


def _baseline(
    experiment: Experiment,
    model: RankingModel,
    accelerator: Accelerator,
    evaluators: Sequence[Evaluator],
    say: Callable[[str], None],
) -> dict[str, Baseline]:
    """The trainer's argument `baseline` with stored metrics of the start model, if the start model is evaluated."""
    if not evaluators or not experiment.settings.eval_at_start:
        return {}
    return {"baseline": Baseline(model, accelerator, experiment.cache_dir, say)}


def _on_device(
    experiment: Experiment,
    inputs: Inputs,
    tables: Sequence[ExampleTable],
    accelerator: Accelerator,
    say: Callable[[str], None],
) -> RankingModel:
    """Returns the model of the experiment on the device of this rank, with the dropout of the settings."""
    model = build_model(experiment, inputs, say)
    model.to(accelerator.device)
    for cut in dict.fromkeys(filter(None, map(model.truncation, tables))):
        say(cut)
    _settle_dropout(experiment, model, say)
    return model


def _replay(
    experiment: Experiment, inputs: Inputs, drawn: Drawn | None, say: Callable[[str], None]
) -> DataLoader | None:
    """Returns the loader of replay_datasets without held-out queries, or None if there are none."""
    if not experiment.replay_datasets:
        return None
    datasets = trained_parts(experiment.replay_datasets, drawn)
    return experiment.replay_dataloader.make(
        table=open_table(experiment.cache_dir, datasets, inputs.pieces(), say),
        weights=weights(datasets),
        batch_size=experiment.settings.replay_batch_size or experiment.settings.batch_size,
        seed=experiment.seed,
    )


def _settle_dropout(experiment: Experiment, model: torch.nn.Module, say: Callable[[str], None]) -> None:
    """Disables dropout unless trainer.dropout is true, and reports if that ignores a dropout of adapters."""
    if experiment.settings.dropout:
        return
    disable_dropout(model)
    if experiment.model.use_peft and (asked := experiment.model.lora.lora_dropout):
        say(
            f"model.peft.lora_dropout={asked} has no effect, because trainer.dropout is false; set trainer.dropout=true"
        )


def build_model(experiment: Experiment, inputs: Inputs, say: Callable[[str], None]) -> RankingModel:
    """The model of the experiment with the parts that its loss needs, such as a critic."""
    needs = all_needs(experiment)
    kind = trained_kind(experiment.model, needs)
    return kind.build(inputs, say, experiment.settings.gradient_checkpointing, needs)


def report_data(
    experiment: Experiment,
    inputs: Inputs,
    materials: Sequence[Material],
    evaluators: Sequence[Evaluator],
    say: Callable[[str], None],
) -> None:
    """Reports the training data and its overlap with the evaluation data, and writes `run_dir`/data_report.json."""
    named = {evaluator.name: evaluator for evaluator in reversed(evaluators)}  # The loss on held-out data comes last.
    tables = {name: evaluator.table(inputs.pieces()) for name, evaluator in named.items()}
    evaluations = {name: (tables[name], evaluator.pairs(tables[name])) for name, evaluator in named.items()}
    kept = inputs.kept if isinstance(inputs, TextInputs) else None
    whole: Report = {"datasets": {}, "overlap": {}}
    for item in materials:
        report = data_report(item.table, [dataset.name for dataset in item.lesson.datasets], kept, evaluations)
        ending = "" if len(materials) == 1 else f" ({item.lesson.name})"
        whole["datasets"] |= report["datasets"]
        whole["overlap"] |= {
            f"{name}{ending}": part
            for name, part in report["overlap"].items()
            if not ending or any(counted["shared"] for counted in part.values())
        }
    for line in lines(whole):
        say(line)
    write_report(experiment.run_dir / "data_report.json", whole)


def disable_dropout(model: torch.nn.Module) -> None:
    """Sets every dropout probability to 0, in modules and in the attributes of attention code."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "activation_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _saver(experiment: Experiment, inputs: Inputs, say: Callable[[str], None]) -> SaveFinal:
    def save(model: RankingModel, metrics: Mapping[str, object], weights: Mapping[str, Tensor] | None) -> None:
        if processes.rank() == 0:
            folder = experiment.run_dir / "FINAL"
            kind = trained_kind(experiment.model, all_needs(experiment))
            rounded = has_rounded_weights(model)
            given = weights
            if given is None and rounded:
                given = {name: value.detach().cpu() for name, value in trained_parameters(model).items()}
            whole = model if given is None else complete(experiment, inputs, given, trained_only=rounded)
            difference = kind.save(folder, whole, describe(experiment, metrics))
            say(f"{folder} written. Check: transformers loaded it, and its outputs differ by at most {difference:.0e}.")
            if rounded and weights is None:  # A forward pass of sharded weights would need all ranks.
                apart = kind.folder_format().difference(folder, model)
                say(
                    f"FINAL holds the adapters merged into the float32 weights; the outputs of the model in training, with "
                    f"its frozen weights in {kind.quantization or 'bfloat16'}, differ from it by at most {apart:.0e}."
                )
        processes.barrier()

    return save


def has_rounded_weights(model: torch.nn.Module) -> bool:
    """Whether frozen weights are quantised, or of a type with fewer bits than float32."""
    return any(p.dtype != torch.float32 for p in model.parameters() if not p.requires_grad)


def complete(experiment: Experiment, inputs: Inputs, weights: Mapping[str, Tensor], trained_only: bool) -> RankingModel:
    """Builds the experiment's model again on the CPU in float32 with these weights.

    The trained model is sharded, or its frozen weights are rounded. trained_only: copies the trained parameters alone.
    """
    kind = replace(experiment.model, dtype="float32", quantization=None)
    model = build_model(replace(experiment, model=kind), inputs, ignore)
    names = trained_parameters(model).keys() if trained_only else model.state_dict().keys()
    model.load_state_dict({name: weights[name] for name in names}, strict=not trained_only)
    if not experiment.settings.dropout:
        disable_dropout(model)
    return model


def trained_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that training updates, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
