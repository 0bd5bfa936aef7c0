"""The task train: construction of data, model, loss and trainer, in the order of their cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rankpo.errors import ConfigError
from rankpo.tasks.base import Task
from rankpo.tasks.description import describe
from rankpo.tasks.evaluators import check_best_metric, make_evaluators
from rankpo.tasks.models import trained_kind
from rankpo.tasks.optimizer import make_optimizer
from rankpo.tasks.references import make_reference, make_teacher
from rankpo.tasks.seeds import seed_everything

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from rankpo.config.experiment import Experiment
    from rankpo.data.loaders.ranking import DataLoader
    from rankpo.data.table import ExampleTable
    from rankpo.evaluation.base import Evaluator
    from rankpo.losses.base import Loss
    from rankpo.models.embedding.model import EmbeddingModel
    from rankpo.runs.logger import MetricsLogger
    from rankpo.trainers.basic import BasicTrainer

COMPLETIONS = frozenset({"token_logps", "rewards"})  # Outputs of kinds that read completions.
DEFAULT_METRICS = ("ndcg@10", "ndcg@20", "mrr@10", "recall@100")


@dataclass(frozen=True, kw_only=True)
class Train(Task):
    """Trains and writes `run_dir`/FINAL. metrics: of corpora among eval_datasets, during training."""

    metrics: Sequence[str] = DEFAULT_METRICS

    trains: ClassVar[bool] = True

    def __post_init__(self) -> None:
        from rankpo.evaluation.metrics import parse_metric

        for name in self.metrics:
            parse_metric(name)

    def reads_datasets(self) -> bool:
        return True

    def __call__(self, experiment: Experiment) -> Mapping[str, float]:
        """Returns the metrics of the last evaluation."""
        from rankpo.config.moved import comparable
        from rankpo.config.origin import origin_of
        from rankpo.runs import origin, processes
        from rankpo.runs.folder import enter_run_dir, start_again
        from rankpo.runs.logger import MetricsLogger
        from rankpo.tasks.start_lines import start_lines

        session = self.open(experiment)
        accelerator, main = session.accelerator, session.main
        refuse_unfit(experiment, accelerator)
        with session.claimed(experiment.run_dir):
            unfinished = True
            if main:
                unfinished = enter_run_dir(
                    experiment.run_dir, experiment.config, experiment.overwrite, experiment.resume, comparable
                )
                self._compare(experiment, session.logger.say, finished=not unfinished)
            if not processes.broadcast_object(unfinished):
                session.logger.say(f"{experiment.run_dir} is finished already; its FINAL stays as it is")
                return {}
            logger = MetricsLogger(experiment.run_dir, main=main, tracker=experiment.tracker, config=experiment.config)
            trainer = assemble(experiment, accelerator, logger, self.metrics)
            if main and experiment.overwrite:
                start_again(experiment.run_dir, experiment.config)
            if main and not (experiment.run_dir / origin.FILE).exists():
                origin.note(experiment.run_dir, origin_of(experiment))
            if experiment.resume == "auto":
                trainer.watch.resume()
            for line in start_lines(experiment, trainer):
                logger.say(line)
            result = trainer.train()
        return result

    def _compare(self, experiment: Experiment, say: Callable[[str], None], finished: bool) -> None:
        """Raises StorageError for an existing run whose data or start weights have changed."""
        from rankpo.config.origin import origin_of
        from rankpo.runs import origin

        begun = finished or (experiment.run_dir / "checkpoints").exists()
        if begun and not experiment.overwrite:
            origin.compare(experiment.run_dir, origin_of(experiment), experiment.allow_changes, say)


def assemble(
    experiment: Experiment, accelerator: Accelerator, logger: MetricsLogger, metrics: Sequence[str] = DEFAULT_METRICS
) -> BasicTrainer:
    """The trainer of an experiment: tokenizer, data, evaluators and only then weights, reference and optimizer."""
    from rankpo.data.table import open_table
    from rankpo.runs.checkpoints import CheckpointStore
    from rankpo.trainers.baseline import Baseline

    seed_everything(experiment.seed)
    inputs = experiment.model.open_inputs(logger.say, experiment.explicit)
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
    baseline = None
    if evaluators and experiment.settings.eval_at_start:
        baseline = Baseline(model, accelerator, experiment.cache_dir, logger.say)
    checkpoints = CheckpointStore(experiment.run_dir)
    if accelerator.is_main_process:
        checkpoints.clean()
    return experiment.trainer.load()(
        settings=experiment.settings,
        accelerator=accelerator,
        policy=model,
        loss=experiment.loss,
        loader=loader,
        optimizer=make_optimizer(experiment, model),
        schedule=experiment.schedule,
        evaluators=evaluators,
        checkpoints=checkpoints,
        logger=logger,
        save_final=_saver(experiment, inputs, logger.say),
        **({} if baseline is None else {"baseline": baseline}),
        reference=reference,
        stored=stored,
        teacher=make_teacher(experiment, model, table, logger.say),
        replay=replay,
    )


def _loaders(
    experiment: Experiment, inputs: Any, table: ExampleTable, say: Callable[[str], None]
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
    experiment: Experiment, inputs: Any, table: ExampleTable, accelerator: Accelerator, say: Callable[[str], None]
) -> Any:
    """Returns the model of the experiment on the device of this rank, with the dropout that the settings ask for."""
    model = build_model(experiment, inputs, say)
    model.to(accelerator.device)
    if cut := model.truncation(table):
        say(cut)
    _settle_dropout(experiment, model, say)
    return model


def _replay(experiment: Experiment, inputs: Any, say: Callable[[str], None]) -> DataLoader | None:
    """Returns the loader of replay_datasets, or None where there are none."""
    from rankpo.data.table import open_table

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
    from rankpo.trainers.empty_updates import check

    try:
        check(loss, loader, say)
    except ValueError as error:
        raise ConfigError([str(error)]) from error


def build_model(experiment: Experiment, inputs: object, say: Callable[[str], None]) -> Any:
    """The model of the experiment with what its loss needs."""
    kind = trained_kind(experiment.model, experiment.loss.needs)
    return kind.build(inputs, say, experiment.settings.gradient_checkpointing, experiment.loss.needs)


def refuse_unfit(experiment: Experiment, accelerator: object) -> None:
    """Raises ConfigError for combinations that the launched strategy does not support, before any file access."""
    from rankpo.trainers.strategies.choose import name_of, unfit

    evaluated = bool(experiment.eval_datasets)
    if problem := unfit(name_of(accelerator), experiment.model.kind, experiment.loss, evaluated):
        raise ConfigError([problem])


def equal_pairs(experiment: Experiment, inputs: Any, table: ExampleTable, say: Callable[[str], None]) -> list[int]:
    """Reports and excludes pairs of completions that are equal after truncation."""
    from rankpo.data.loaders.ranking import PairedPreferenceDataLoader

    if not experiment.model.gives & COMPLETIONS or not issubclass(
        experiment.dataloader.load(), PairedPreferenceDataLoader
    ):
        return []
    found: list[int] = inputs.equal_pairs(table)
    if found:
        say(f"{len(found)} of {len(table)} pairs are left out: cut to model.max_length, both answers are equal")
    return found


def weights(datasets: Sequence[Any]) -> list[float]:
    """Returns the weight of each dataset: how often an epoch repeats its examples."""
    return [getattr(dataset, "weight", 1.0) for dataset in datasets]  # External datasets may lack it.


def report_data(
    experiment: Experiment,
    inputs: Any,
    table: ExampleTable,
    evaluators: Sequence[Evaluator],
    say: Callable[[str], None],
) -> None:
    """Reports the training data and its overlap with the evaluation data, and writes `run_dir`/data_report.json."""
    from rankpo.data.report import data_report, lines, write_report
    from rankpo.models.inputs import TextInputs

    tables = {evaluator.name: evaluator.table(inputs.pieces()) for evaluator in evaluators}
    evaluations = {e.name: (tables[e.name], e.pairs(tables[e.name])) for e in evaluators}
    kept = inputs.kept if isinstance(inputs, TextInputs) else None
    report = data_report(table, [dataset.name for dataset in experiment.datasets], kept, evaluations)
    for line in lines(report):
        say(line)
    write_report(experiment.run_dir / "data_report.json", report)


def disable_dropout(model: torch.nn.Module) -> None:
    """Sets every dropout probability to 0, in modules and in the attributes of attention code."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "activation_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _saver(experiment: Experiment, inputs: Any, say: Callable[[str], None]) -> Callable[..., None]:
    def save(model: EmbeddingModel, metrics: Mapping[str, object], weights: Mapping[str, object] | None) -> None:
        from rankpo.runs import processes

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


def complete(experiment: Experiment, inputs: object, weights: Mapping[str, object]) -> object:
    """Builds the experiment's model again on the CPU with these weights, since the trained one is sharded."""
    model = build_model(experiment, inputs, _silent)
    model.load_state_dict(weights)
    if not experiment.settings.dropout:
        disable_dropout(model)
    return model


def _silent(line: str) -> None:
    """Ignores progress lines: this is a second build."""
