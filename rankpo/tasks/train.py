"""The task train: construction of data, model, loss and trainer, in the order of their cost."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rankpo.config.places import INSTALLED, ROOT
from rankpo.errors import ConfigError
from rankpo.tasks.base import Task
from rankpo.tasks.models import trained_kind
from rankpo.tasks.seeds import seed_everything

if TYPE_CHECKING:
    import torch

    from rankpo.config.experiment import Experiment
    from rankpo.data.loaders.ranking import DataLoader
    from rankpo.evaluation.base import Evaluator
    from rankpo.losses.base import Loss
    from rankpo.models.embedding.model import EmbeddingModel
    from rankpo.models.kind import ModelKind
    from rankpo.models.reference import Reference
    from rankpo.runs.logger import MetricsLogger
    from rankpo.trainers.basic import BasicTrainer
    from rankpo.trainers.teacher import TeacherEmbeddings

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
    experiment: Experiment, accelerator: Any, logger: MetricsLogger, metrics: Sequence[str] = DEFAULT_METRICS
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
    common = {"batch_size": experiment.settings.batch_size, "seed": experiment.seed}
    left_out = equal_pairs(experiment, inputs, table, logger.say)
    loader = experiment.dataloader.make(table=table, weights=weights(experiment.datasets), left_out=left_out, **common)
    replay = None
    if experiment.replay_datasets:
        replay_table = open_table(experiment.cache_dir, experiment.replay_datasets, inputs.pieces(), logger.say)
        replay_size = experiment.settings.replay_batch_size or experiment.settings.batch_size
        replay = experiment.replay_dataloader.make(
            table=replay_table,
            weights=weights(experiment.replay_datasets),
            batch_size=replay_size,
            seed=experiment.seed,
        )
    check_teaches(experiment.loss, loader, logger.say)
    if logger.main:
        report_data(experiment, inputs, table, evaluators, logger.say)
    model = build_model(experiment, inputs, logger.say)
    model.to(accelerator.device)
    if cut := model.truncation(table):
        logger.say(cut)
    if not experiment.settings.dropout:
        disable_dropout(model)
        if experiment.model.use_peft and (asked := experiment.model.lora.lora_dropout):
            logger.say(f"model.peft.lora_dropout={asked} has no effect: trainer.dropout is false; set it to true")
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


def equal_pairs(experiment: Experiment, inputs: Any, table: Any, say: Callable[[str], None]) -> list[int]:
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


def make_evaluators(
    experiment: Experiment, metrics: Sequence[str], say: Callable[[str], None], top_k: int = 100
) -> list[Evaluator]:
    """The evaluator of every entry of eval_datasets. top_k: documents kept per query; more where a metric looks deeper."""
    return evaluators_of(experiment.model, experiment.loss, experiment, metrics, say, top_k)


def evaluators_of(
    kind: ModelKind,
    loss: Loss,
    experiment: Experiment,
    metrics: Sequence[str],
    say: Callable[[str], None],
    top_k: int,
) -> list[Evaluator]:
    """`make_evaluators` for another kind and loss than the experiment's: those of a run, say."""
    from rankpo.data.shape import declared
    from rankpo.evaluation.choose import Choice

    choice = Choice(cache_dir=experiment.cache_dir, say=say, metrics=metrics, top_k=top_k)
    return [choice.evaluator(declared(dataset), kind.gives, loss) for dataset in experiment.eval_datasets]


def report_data(
    experiment: Experiment, inputs: Any, table: Any, evaluators: Sequence[Evaluator], say: Callable[[str], None]
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


def check_best_metric(name: str | None, evaluators: Sequence[Evaluator]) -> None:
    """Raises ConfigError before training for a metric without an evaluation that computes it."""
    if name is None:
        return
    known = [f"{evaluator.name}/{metric}" for evaluator in evaluators for metric in evaluator.metrics]
    if name not in known and name not in [metric.split("/", 1)[1] for metric in known]:
        allowed = ", ".join(known) or "none: eval_datasets is empty"
        raise ConfigError([f"trainer.best_metric={name} is not measured; allowed: {allowed}"])


def make_reference(
    experiment: Experiment, model: EmbeddingModel, table: Any, say: Callable[[str], None], autocast: Callable[[], Any]
) -> tuple[Reference | None, object]:
    """The source of reference scores, and the stored ones where that is the source. autocast: the policy's."""
    from rankpo.models import reference

    if "reference" not in experiment.loss.needs:
        return None, None
    if experiment.load_reference_logprobs is not None:
        scores = reference.load_scores(experiment.load_reference_logprobs, table, model.settings, say)
        return reference.StoredReference(), scores
    chosen = experiment.settings.reference
    if chosen == "auto":
        live = "live" if "live_reference" in experiment.loss.needs_with(experiment.model.gives) else "stored"
        # Adapters of an earlier run belong to the start model, so disabling them would give a different reference.
        fresh = model.has_adapters and not getattr(experiment.model, "load_lora_from", None)
        chosen = "adapters" if fresh and not experiment.cache_reference_logprobs else live
    if chosen == "adapters":
        return reference.AdapterReference(model), None
    if chosen == "live":
        return reference.LiveReference(model), None
    scores = reference.stored_scores(model, table, experiment.cache_dir, say, autocast)
    if experiment.cache_reference_logprobs:
        reference.save_scores(experiment.run_dir / reference.FILE, scores, table, model.settings, say)
    return reference.StoredReference(), scores


def make_teacher(
    experiment: Experiment, model: EmbeddingModel, table: Any, say: Callable[[str], None]
) -> TeacherEmbeddings | None:
    """Embeddings of the training data by the guide or teacher of the loss, or None where it has none."""
    from rankpo.losses.in_batch import InBatchLoss
    from rankpo.models.loading import LoadingError
    from rankpo.trainers.teacher import Teaching, teacher_embeddings

    loss = experiment.loss
    if not isinstance(loss, InBatchLoss) or "teacher" not in loss.knows:
        return None
    start = Teaching(model=model, table=table, datasets=experiment.datasets, cache_dir=experiment.cache_dir)
    try:
        return teacher_embeddings(loss.teacher_model, start, say)
    except LoadingError as error:
        raise ConfigError([f"loss: {error}"]) from error


def make_optimizer(experiment: Experiment, model: EmbeddingModel) -> torch.optim.Optimizer:
    """Excludes biases and norms (all one-dimensional parameters) from weight decay."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, object]] = [{"params": [p for p in trained if p.dim() > 1]}]
    if flat := [p for p in trained if p.dim() <= 1]:
        groups.append({"params": flat, "weight_decay": 0.0})
    return experiment.optimizer.make(params=[group for group in groups if group["params"]])


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


def describe(experiment: Experiment, metrics: Mapping[str, object]) -> dict[str, object]:
    """Returns the description of a run for rankpo.json and the card, without local paths."""
    import torch
    import transformers

    from rankpo import __version__

    config = experiment.config
    model = config["model"]
    return {
        "exp_name": experiment.exp_name,
        "base_model": model["name_or_path"] or ("random weights" if model["random"] else None),
        "loss": type(experiment.loss).__name__,
        "loss_values": {k: v for k, v in config["loss"].items() if k != "_target_"},
        "optimizer": {k: v for k, v in config["optimizer"].items() if k != "_target_"},
        "data": {dataset.name: dataset.fingerprint() for dataset in experiment.datasets},
        "seed": experiment.seed,
        "versions": {"rankpo": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "commit": _commit(),
        "metrics_before": metrics.get("before") or {},
        "metrics_after": metrics.get("after") or {},
    }


def _commit() -> str | None:
    """The commit of the checkout that runs, or None outside of one.

    git is looked for in the absolute folders of PATH: one in the folder that a run is started from is not called.
    """
    folders = [folder for folder in os.environ.get("PATH", "").split(os.pathsep) if Path(folder).is_absolute()]
    git = shutil.which("git", path=os.pathsep.join(folders) or os.defpath)
    if INSTALLED or git is None or not Path(git).is_absolute():
        return None
    done = subprocess.run([git, "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
