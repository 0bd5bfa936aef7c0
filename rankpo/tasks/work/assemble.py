"""The parts of a training run: data, evaluators, model, reference and trainer, made in the order of their cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from rankpo.data.report import data_report, lines, write_report
from rankpo.data.table import open_table
from rankpo.errors import ConfigError
from rankpo.models.inputs import TextInputs
from rankpo.runs import processes
from rankpo.runs.checkpoints import CheckpointStore
from rankpo.tasks.description import describe
from rankpo.tasks.evaluators import check_best_metric, make_evaluators
from rankpo.tasks.models import trained_kind
from rankpo.tasks.optimizer import make_optimizer
from rankpo.tasks.priors import check_prior
from rankpo.tasks.references import make_reference, make_teacher
from rankpo.tasks.seeds import seed_everything
from rankpo.tasks.train import DEFAULT_METRICS
from rankpo.trainers.baseline import Baseline
from rankpo.trainers.empty_updates import check

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    from rankpo.config.experiment import Experiment
    from rankpo.data.dataset import Dataset
    from rankpo.data.loaders.ranking import DataLoader
    from rankpo.data.table import ExampleTable
    from rankpo.evaluation.base import Evaluator
    from rankpo.losses.base import Loss
    from rankpo.models.base import RankingModel
    from rankpo.models.inputs import Inputs
    from rankpo.runs.logger import MetricsLogger
    from rankpo.trainers.basic import BasicTrainer
    from rankpo.trainers.parts import SaveFinal


def assemble(
    experiment: Experiment, accelerator: Accelerator, logger: MetricsLogger, metrics: Sequence[str] = DEFAULT_METRICS
) -> BasicTrainer:
    """The trainer of an experiment: tokenizer, data, evaluators and only then weights, reference and optimizer."""
    seed_everything(experiment.seed)
    inputs = experiment.model.open_inputs(logger.say, experiment.explicit)
    check_prior(inputs.settings, experiment.loss)
    evaluators = make_evaluators(experiment, metrics, logger.say)
    check_best_metric(experiment.settings.best_metric, evaluators)
    table = open_table(experiment.cache_dir, experiment.datasets, inputs.pieces(), logger.say)
    loader, replay = _loaders(experiment, inputs, table, logger.say)
    if logger.main:
        report_data(experiment, inputs, table, evaluators, logger.say)
    model = _on_device(experiment, inputs, table, accelerator, logger.say)
    reference, stored = make_reference(experiment, model, table, logger.say, accelerator.autocast)
    for evaluator in evaluators:
        evaluator.compare_with(model, accelerator.autocast, reference)
    return experiment.trainer.load()(
        settings=experiment.settings,
        accelerator=accelerator,
        policy=model,
        loss=experiment.loss,
        loader=loader,
        optimizer=make_optimizer(experiment, model),
        schedule=experiment.schedule,
        evaluators=evaluators,
        checkpoints=_checkpoints(experiment, accelerator),
        logger=logger,
        save_final=_saver(experiment, inputs, logger.say),
        reference=reference,
        stored=stored,
        teacher=make_teacher(experiment, model, table, logger.say),
        replay=replay,
        **_baseline(experiment, model, accelerator, evaluators, logger.say),
    )


def _checkpoints(experiment: Experiment, accelerator: Accelerator) -> CheckpointStore:
    """The checkpoints of the run directory, without those that an interruption left unfinished."""
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
    """The trainer's argument `baseline`, stored metrics of the start model, if the start model is evaluated."""
    if not evaluators or not experiment.settings.eval_at_start:
        return {}
    return {"baseline": Baseline(model, accelerator, experiment.cache_dir, say)}


def _loaders(
    experiment: Experiment, inputs: Inputs, table: ExampleTable, say: Callable[[str], None]
) -> tuple[DataLoader, DataLoader | None]:
    """Returns the loader of datasets, and that of replay_datasets if there are any."""
    loader = experiment.dataloader.make(
        table=table,
        weights=weights(experiment.datasets),
        left_out=equal_pairs(experiment, inputs, table, say),
        batch_size=experiment.settings.batch_size,
        seed=experiment.seed,
    )
    replay = _replay(experiment, inputs, say)
    check_teaches(experiment.loss, loader, say)
    return loader, replay


def _on_device(
    experiment: Experiment, inputs: Inputs, table: ExampleTable, accelerator: Accelerator, say: Callable[[str], None]
) -> RankingModel:
    """Returns the model of the experiment on the device of this rank, with the dropout that the settings ask for."""
    model = build_model(experiment, inputs, say)
    model.to(accelerator.device)
    if cut := model.truncation(table):
        say(cut)
    _settle_dropout(experiment, model, say)
    return model


def _replay(experiment: Experiment, inputs: Inputs, say: Callable[[str], None]) -> DataLoader | None:
    """Returns the loader of replay_datasets, or None where there are none."""
    if not experiment.replay_datasets:
        return None
    return experiment.replay_dataloader.make(
        table=open_table(experiment.cache_dir, experiment.replay_datasets, inputs.pieces(), say),
        weights=weights(experiment.replay_datasets),
        batch_size=experiment.settings.replay_batch_size or experiment.settings.batch_size,
        seed=experiment.seed,
    )


def _settle_dropout(experiment: Experiment, model: torch.nn.Module, say: Callable[[str], None]) -> None:
    """Disables dropout unless trainer.dropout is true; a line says if that includes the dropout of the adapters."""
    if experiment.settings.dropout:
        return
    disable_dropout(model)
    if experiment.model.use_peft and (asked := experiment.model.lora.lora_dropout):
        say(f"model.peft.lora_dropout={asked} has no effect: trainer.dropout is false; set it to true")


def check_teaches(loss: Loss, loader: DataLoader, say: Callable[[str], None]) -> None:
    """Raises ConfigError for data without a training signal, and reports the share of data without one."""
    try:
        check(loss, loader, say)
    except ValueError as error:
        raise ConfigError([str(error)]) from error


def build_model(experiment: Experiment, inputs: Inputs, say: Callable[[str], None]) -> RankingModel:
    """The model of the experiment with what its loss needs."""
    kind = trained_kind(experiment.model, experiment.loss.needs)
    return kind.build(inputs, say, experiment.settings.gradient_checkpointing, experiment.loss.needs)


def equal_pairs(experiment: Experiment, inputs: Inputs, table: ExampleTable, say: Callable[[str], None]) -> list[int]:
    """Reports and excludes pairs of completions that are equal after truncation."""
    if not experiment.dataloader.load().pairs:
        return []
    found = inputs.equal_pairs(table)
    if found:
        say(f"{len(found)} of {len(table)} pairs are left out: cut to model.max_length, both answers are equal")
    return found


def weights(datasets: Sequence[Dataset]) -> list[float]:
    """Returns the weight of each dataset: how often an epoch repeats its examples."""
    return [getattr(dataset, "weight", 1.0) for dataset in datasets]  # External datasets may lack it.


def report_data(
    experiment: Experiment,
    inputs: Inputs,
    table: ExampleTable,
    evaluators: Sequence[Evaluator],
    say: Callable[[str], None],
) -> None:
    """Reports the training data and its overlap with the evaluation data, and writes `run_dir`/data_report.json."""
    tables = {evaluator.name: evaluator.table(inputs.pieces()) for evaluator in evaluators}
    evaluations = {e.name: (tables[e.name], e.pairs(tables[e.name])) for e in evaluators}
    kept = inputs.kept if isinstance(inputs, TextInputs) else None
    report = data_report(table, [dataset.name for dataset in experiment.datasets], kept, evaluations)
    for line in lines(report):
        say(line)
    write_report(experiment.run_dir / "data_report.json", report)


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
            whole = model if weights is None else complete(experiment, inputs, weights)
            difference = trained_kind(experiment.model, experiment.loss.needs).save(
                folder, whole, describe(experiment, metrics)
            )
            say(
                f"{folder} written. Check: loaded again by transformers, its outputs differ by at most {difference:.0e}."
            )
        processes.barrier()

    return save


def complete(experiment: Experiment, inputs: Inputs, weights: Mapping[str, Tensor]) -> RankingModel:
    """Builds the experiment's model again on the CPU with these weights, since the trained one is sharded."""
    model = build_model(experiment, inputs, _silent)
    model.load_state_dict(weights)
    if not experiment.settings.dropout:
        disable_dropout(model)
    return model


def _silent(line: str) -> None:
    """Ignores progress lines: this is a second build."""
