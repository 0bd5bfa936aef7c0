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
from rankpo.tasks.seeds import seed_everything

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from rankpo.config.experiment import Experiment
    from rankpo.data.holdout import Drawn
    from rankpo.data.loaders.ranking import DataLoader
    from rankpo.data.table import ExampleTable
    from rankpo.evaluation.base import Evaluator
    from rankpo.models.embedding.model import EmbeddingModel
    from rankpo.runs.checkpoints import CheckpointStore
    from rankpo.runs.logger import MetricsLogger
    from rankpo.tasks.work.lessons import Material
    from rankpo.trainers.baseline import Baseline
    from rankpo.trainers.basic import BasicTrainer

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

    def __call__(self, experiment: Experiment) -> Mapping[str, float]:
        """Returns the metrics of the last evaluation."""
        from rankpo.config.moved import comparable
        from rankpo.config.origin import origin_of
        from rankpo.runs import origin, processes
        from rankpo.runs.folder import enter_run_dir, start_again
        from rankpo.runs.logger import MetricsLogger

        if not experiment.datasets:
            raise ConfigError(["datasets is empty; choose some, such as datasets=[jobs]"])
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
    from rankpo.tasks.references import StartModel
    from rankpo.tasks.work.holdout import HeldOut, drawn_of, held_out, trained_parts
    from rankpo.tasks.work.lessons import lessons_of, material, objective, trainer_of

    seed_everything(experiment.seed)
    inputs = experiment.model.open_inputs(logger.say, experiment.explicit)
    drawn = drawn_of(experiment, logger.say)
    lessons = lessons_of(experiment, trained_parts(experiment.datasets, drawn))
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
    )
    objectives = [objective(start, item) for item in materials]
    reference = next((item.reference for item in objectives if item.reference is not None), None)
    for evaluator in evaluators:
        evaluator.compare_with(model, accelerator.autocast, reference)
    parts = {
        "settings": settings,
        "accelerator": accelerator,
        "policy": model,
        "optimizer": make_optimizer(experiment, model),
        "schedule": experiment.schedule,
        "evaluators": evaluators,
        "checkpoints": _checkpoints(experiment, accelerator),
        "logger": logger,
        "save_final": _saver(experiment, inputs, logger.say),
        **_baseline(experiment, model, accelerator, evaluators, logger.say),
    }
    trainer = trainer_of(experiment, objectives, replay, parts)
    held.measure_losses(trainer, inputs, start)
    return trainer


def _checkpoints(experiment: Experiment, accelerator: Accelerator) -> CheckpointStore:
    """The checkpoints of the run directory, without those that an interruption left unfinished."""
    from rankpo.runs.checkpoints import CheckpointStore

    checkpoints = CheckpointStore(experiment.run_dir)
    if accelerator.is_main_process:
        checkpoints.clean()
    return checkpoints


def _baseline(
    experiment: Experiment,
    model: Any,
    accelerator: Accelerator,
    evaluators: Sequence[Evaluator],
    say: Callable[[str], None],
) -> dict[str, Baseline]:
    """The trainer's argument `baseline`, stored metrics of the start model, if the start model is evaluated."""
    from rankpo.trainers.baseline import Baseline

    if not evaluators or not experiment.settings.eval_at_start:
        return {}
    return {"baseline": Baseline(model, accelerator, experiment.cache_dir, say)}


def _on_device(
    experiment: Experiment,
    inputs: Any,
    tables: Sequence[ExampleTable],
    accelerator: Accelerator,
    say: Callable[[str], None],
) -> Any:
    """Returns the model of the experiment on the device of this rank, with the dropout that the settings ask for."""
    model = build_model(experiment, inputs, say)
    model.to(accelerator.device)
    for cut in dict.fromkeys(filter(None, map(model.truncation, tables))):
        say(cut)
    _settle_dropout(experiment, model, say)
    return model


def _replay(experiment: Experiment, inputs: Any, drawn: Drawn | None, say: Callable[[str], None]) -> DataLoader | None:
    """Returns the loader of replay_datasets without what is held out, or None where there are none."""
    from rankpo.data.table import open_table
    from rankpo.tasks.work.holdout import trained_parts
    from rankpo.tasks.work.lessons import weights

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
    """Disables dropout unless trainer.dropout is true; a line says if that includes the dropout of the adapters."""
    if experiment.settings.dropout:
        return
    disable_dropout(model)
    if experiment.model.use_peft and (asked := experiment.model.lora.lora_dropout):
        say(f"model.peft.lora_dropout={asked} has no effect: trainer.dropout is false; set it to true")


def build_model(experiment: Experiment, inputs: object, say: Callable[[str], None]) -> Any:
    """The model of the experiment with what its loss needs."""
    from rankpo.tasks.work.lessons import all_needs

    needs = all_needs(experiment)
    kind = trained_kind(experiment.model, needs)
    return kind.build(inputs, say, experiment.settings.gradient_checkpointing, needs)


def refuse_unfit(experiment: Experiment, accelerator: object) -> None:
    """Raises ConfigError for combinations that the launched strategy does not support, before any file access."""
    from rankpo.trainers.strategies.choose import name_of, unfit

    evaluated = bool(experiment.eval_datasets)
    if problem := unfit(name_of(accelerator), experiment.model.kind, experiment.loss, evaluated):
        raise ConfigError([problem])


def report_data(
    experiment: Experiment,
    inputs: Any,
    materials: Sequence[Material],
    evaluators: Sequence[Evaluator],
    say: Callable[[str], None],
) -> None:
    """Reports the training data and its overlap with the evaluation data, and writes `run_dir`/data_report.json."""
    from rankpo.data.report import data_report, lines, write_report
    from rankpo.models.inputs import TextInputs

    named = {evaluator.name: evaluator for evaluator in reversed(evaluators)}  # The loss on held-out data comes last.
    tables = {name: evaluator.table(inputs.pieces()) for name, evaluator in named.items()}
    evaluations = {name: (tables[name], evaluator.pairs(tables[name])) for name, evaluator in named.items()}
    kept = inputs.kept if isinstance(inputs, TextInputs) else None
    whole: dict[str, dict[str, Any]] = {"datasets": {}, "overlap": {}}
    for item in materials:
        names = [dataset.name for dataset in item.lesson.datasets]
        report = data_report(item.table, names, kept, evaluations)
        whole["datasets"] |= report["datasets"]
        only = len(materials) == 1
        whole["overlap"] |= {
            name if only else f"{name} ({item.lesson.name})": part for name, part in report["overlap"].items()
        }
    for line in lines(whole):
        say(line)
    write_report(experiment.run_dir / "data_report.json", whole)


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
        from rankpo.tasks.work.lessons import all_needs

        if processes.rank() == 0:
            folder = experiment.run_dir / "FINAL"
            whole = model if weights is None else complete(experiment, inputs, weights)
            difference = trained_kind(experiment.model, all_needs(experiment)).save(
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
