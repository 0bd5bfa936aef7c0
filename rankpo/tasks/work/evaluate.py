"""The work of task=evaluate: one model, or every checkpoint of a run, on eval_datasets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rankpo.data.readers.trec import check_names, write_run
from rankpo.errors import ConfigError
from rankpo.evaluation.means import with_means
from rankpo.runs.checkpoints import CheckpointStore
from rankpo.storage.atomic import replace_text
from rankpo.tasks.evaluators import evaluators_of
from rankpo.tasks.models import ModelOfRun, build_model, load_weights

if TYPE_CHECKING:
    from rankpo.config.experiment import Experiment
    from rankpo.evaluation.base import Evaluator, Result
    from rankpo.losses.base import Loss
    from rankpo.models.base import RankingModel
    from rankpo.models.kind import AnyKind
    from rankpo.runs.logger import MetricsLogger
    from rankpo.tasks.evaluate import Evaluate

START = "start"
Values = Mapping[str, float | None]  # metrics of one model by their names, such as beir/ndcg@10
RANKPO_METRICS = ("rankpo/recall@20", "rankpo/ndcg@20", "rankpo/auc@20")


def run(task: Evaluate, experiment: Experiment) -> list[dict[str, object]]:
    """The table's rows, one for each model."""
    if not experiment.eval_datasets:
        raise ConfigError(["eval_datasets is empty; choose some, such as eval_datasets=[jobs_test]"])
    runs: Mapping[str, ModelOfRun | None] = {"": None} if task.run is None else runs_of(Path(task.run))
    session = task.open(experiment)
    logger = session.logger
    rows: list[dict[str, object]] = []
    started: dict[str, Values] = {}  # Jobs of a sweep may begin with the same model.
    for job, run in runs.items():
        kind, loss = (experiment.model, experiment.loss) if run is None else (run.kind, run.loss)
        evaluators = _evaluators(task, experiment, kind, loss, logger)
        measured: dict[str, Values] = {}
        for name, make in _models(task, experiment, run, logger.say, sweep=bool(job)):
            known = "" if run is None or name != START else run.start_key
            if known and known in started:
                measured[name] = started[known]
                continue
            model = make()
            session.prepared(model)
            written = logger.main and not (name == START and task.start is not None)  # a run's report shows its models
            folder = Path(task.output) / job / name if written else None
            measured[name] = _evaluate(model, evaluators, folder, experiment.config["eval_datasets"])
            started |= {known: measured[name]} if known else {}
        kept = [f"{evaluator.name}/{name}" for evaluator in evaluators if evaluator.retained for name in task.metrics]
        rows += _rows(job, measured, kept)
    logger.table(rows)
    if any("accuracy" in evaluator.metrics for evaluator in evaluators) and "vectors" in kind.gives:
        _remind(task, kept, logger)
    return rows


def _evaluators(
    task: Evaluate, experiment: Experiment, kind: AnyKind, loss: Loss, logger: MetricsLogger
) -> list[Evaluator]:
    metrics = [*task.metrics, *(RANKPO_METRICS if task.rankpo else ())]
    evaluators = evaluators_of(kind, loss, experiment, metrics, logger.say, task.top_k)
    check_names_of(evaluators)
    return evaluators


def _rows(job: str, measured: Mapping[str, Values], kept: Sequence[str]) -> list[dict[str, object]]:
    """The rows of one run. job: its name in a sweep, or empty. A sweep has no rows for start models."""
    start = measured.get(START, {})
    return [
        {"model": f"{job}/{name}" if job else name, **values, **retention(values, start, kept)}
        for name, values in measured.items()
        if not (job and name == START)
    ]


def runs_of(folder: Path) -> dict[str, ModelOfRun | None]:
    """Returns the run of a folder with the key "", or the jobs of a sweep by name. Raises ConfigError for no run."""
    if (folder / "config.json").exists():
        return {"": ModelOfRun.of(folder)}
    found = sorted(path.parent for path in folder.rglob("config.json") if (path.parent / "FINAL").is_dir())
    if not found:
        raise ConfigError(
            [
                f"task.run={folder} is not a run with checkpoints or FINAL, and not a sweep with finished jobs; set it "
                "to the directory of a run or a sweep"
            ]
        )
    return {str(job.relative_to(folder)): ModelOfRun.of(job) for job in found}


def _remind(task: Evaluate, kept: Sequence[str], logger: MetricsLogger) -> None:
    """Prints which data or key to add where the table shows no retention of retrieval quality.

    Agreement with preferences can rise while retrieval quality falls, so both should be measured.
    """
    if not kept:
        logger.say(
            "This table shows agreement with preferences and no retrieval metric. To see both, add a dataset with a corpus "
            "and relevance judgements to eval_datasets, such as beir or jobs_test."
        )
    elif task.run is None and task.start is None:
        logger.say(
            "This table does not show how much of the start model's quality is kept. To see it, set task.start to the "
            "start model of the training, or task.run to the run."
        )


def _models(
    task: Evaluate, experiment: Experiment, run: ModelOfRun | None, say: Callable[[str], None], sweep: bool
) -> Iterator[tuple[str, Callable[[], RankingModel]]]:
    """Yields `start`, if given, and the model of the config; or a run's start model, checkpoints by step, and FINAL.

    sweep: whether the run is a job of a sweep, whose checkpoints are skipped.
    """
    if run is None:
        if task.start is not None:
            start = started_from(experiment.model, task.start)
            yield START, lambda: build_model(start, (), say)
        yield "model", lambda: build_model(experiment.model, experiment.explicit, say)
        return
    model = run.start(say)
    yield START, lambda: model
    for checkpoint in [] if sweep else CheckpointStore(run.folder).list():
        load_weights(model, checkpoint)
        yield checkpoint.path.name, lambda: model
    final = run.folder / "FINAL"
    if final.is_dir():
        yield "FINAL", lambda: run.final(final, say)


def _evaluate(
    model: RankingModel,
    evaluators: Sequence[Evaluator],
    folder: Path | None,
    datasets: Mapping[str, Mapping[str, object]],
) -> dict[str, float]:
    """Metrics by dataset and name, written to `folder` unless it is None. datasets: config nodes by name."""
    values: dict[str, float] = {}
    for evaluator in evaluators:
        result = evaluator.evaluate(model)
        values.update({f"{evaluator.name}/{name}": value for name, value in result.metrics.items()})
        if folder is not None:
            write_result(folder / evaluator.name, result, model, source_of(evaluator.name, datasets))
    whole = with_means(values, evaluators)
    if folder is not None and len(whole) > len(values):
        means = {name: value for name, value in whole.items() if name not in values}
        replace_text(folder / "means.json", json.dumps(means, indent=1))
    return whole


def retention(values: Values, start: Values, names: Sequence[str]) -> dict[str, float]:
    """The ratio of each metric to the start model's, for the metrics in `names`."""
    pairs = [(name, values.get(name), start.get(name)) for name in names]
    return {f"retention/{name}": own / before for name, own, before in pairs if own is not None and before}


def started_from(config: AnyKind, start: str) -> AnyKind:
    """The settings of a start model: a saved folder's own, or those of the config for a hub id."""
    if Path(start).is_dir():
        return replace(config, load_from=start, random=None, use_peft=False)
    return replace(config, load_from=None, name_or_path=start, random=None, use_peft=False)


def check_names_of(evaluators: Sequence[Evaluator]) -> None:
    """Raises ConfigError, before anything is encoded, for ids that run.trec cannot hold."""
    try:
        for evaluator in evaluators:
            check_names(evaluator.names(), f"eval_datasets.{evaluator.name}")
    except ValueError as error:
        raise ConfigError([str(error)]) from error


def source_of(name: str, datasets: Mapping[str, Mapping[str, object]]) -> Mapping[str, object] | None:
    """The config node of a dataset by its `name` or `alias`, so that a report can read its texts again; None if unknown."""
    return next((node for node in datasets.values() if name in (node.get("alias"), node.get("name"))), None)


def write_result(folder: Path, result: Result, model: RankingModel, source: Mapping[str, object] | None = None) -> None:
    """Writes metrics.json, per_query.jsonl and, for retrieval, run.trec. source: the config node of the dataset."""
    folder.mkdir(parents=True, exist_ok=True)
    summary: Mapping[str, object] = {
        "metrics": {**result.metrics, **dict.fromkeys(result.undefined)},
        "undefined": result.undefined,
        "counts": result.counts,
        "settings": model.settings.to_json(),
        "dataset": source,
    }
    replace_text(folder / "metrics.json", json.dumps(summary, indent=1))
    with (folder / "per_query.jsonl").open("w", encoding="utf-8") as file:
        for query, values in result.per_query.items():
            file.write(json.dumps({"query": query, **values}) + "\n")
    if result.run:
        write_run(folder / "run.trec", result.run)
