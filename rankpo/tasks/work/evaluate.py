"""The work of task=evaluate: one model, or every checkpoint of a run, on eval_datasets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rankpo.data.readers.trec import check_names, write_run
from rankpo.errors import ConfigError
from rankpo.runs.checkpoints import CheckpointStore
from rankpo.storage.atomic import replace_text
from rankpo.tasks.evaluators import evaluators_of
from rankpo.tasks.models import ModelOfRun, build_model, load_weights

if TYPE_CHECKING:
    from rankpo.config.experiment import Experiment
    from rankpo.evaluation.base import Evaluator, Result
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
    run = None if task.run is None else ModelOfRun.of(Path(task.run))
    kind, loss = (experiment.model, experiment.loss) if run is None else (run.kind, run.loss)
    session = task.open(experiment)
    logger = session.logger
    metrics = [*task.metrics, *(RANKPO_METRICS if task.rankpo else ())]
    evaluators = evaluators_of(kind, loss, experiment, metrics, logger.say, task.top_k)
    check_names_of(evaluators)
    measured: dict[str, dict[str, float]] = {}
    for name, model in _models(task, experiment, run, logger.say):
        session.prepared(model)
        written = logger.main and not (name == START and task.start is not None)  # a run's report shows its models
        folder = Path(task.output) / name if written else None
        measured[name] = _evaluate(model, evaluators, folder, experiment.config["eval_datasets"])
    kept = [f"{evaluator.name}/{name}" for evaluator in evaluators if evaluator.retained for name in task.metrics]
    start = measured.get(START, {})
    rows = [{"model": name, **values, **retention(values, start, kept)} for name, values in measured.items()]
    logger.table(rows)
    if any("accuracy" in evaluator.metrics for evaluator in evaluators) and "vectors" in kind.gives:
        _remind(task, kept, logger)
    return rows


def _remind(task: Evaluate, kept: Sequence[str], logger: MetricsLogger) -> None:
    """Agreement with preferences can rise while retrieval gets worse: names what to add to see both."""
    if not kept:
        logger.say(
            "This table shows agreement with preferences, and not what retrieval lost for it. To see both, add a data set "
            "with a corpus and relevance judgements to eval_datasets, such as beir or jobs_test."
        )
    elif task.run is None and task.start is None:
        logger.say(
            "This table does not show how much of the start model's quality is kept. To see it, set task.start to the "
            "model that training began from, or task.run to the run."
        )


def _models(
    task: Evaluate, experiment: Experiment, run: ModelOfRun | None, say: Callable[[str], None]
) -> Iterator[tuple[str, RankingModel]]:
    """The model of the config, after `start`; or of a run: what it started from, each checkpoint by step, FINAL."""
    if run is None:
        if task.start is not None:
            yield START, build_model(started_from(experiment.model, task.start), (), say)
        yield "model", build_model(experiment.model, experiment.explicit, say)
        return
    folder = Path(str(task.run))
    model = run.start(say)
    yield START, model
    for checkpoint in CheckpointStore(folder).list():
        load_weights(model, checkpoint)
        yield checkpoint.path.name, model
    if (folder / "FINAL").is_dir():
        yield "FINAL", run.final(folder / "FINAL", say)


def _evaluate(
    model: RankingModel,
    evaluators: Sequence[Evaluator],
    folder: Path | None,
    datasets: Mapping[str, Mapping[str, object]],
) -> dict[str, float]:
    """Metrics by data set and name; written to `folder` if there is one. datasets: their config nodes by name."""
    values: dict[str, float] = {}
    for evaluator in evaluators:
        result = evaluator.evaluate(model)
        values.update({f"{evaluator.name}/{name}": value for name, value in result.metrics.items()})
        if folder is not None:
            write_result(folder / evaluator.name, result, model, source_of(evaluator.name, datasets))
    return values


def retention(values: Values, start: Values, names: Sequence[str]) -> dict[str, float]:
    """Each metric over the start model's: a gain in agreement means little without it."""
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
    """The config node of a data set by its `name` key, so that a report can read its texts again; None if unknown."""
    return next((node for node in datasets.values() if node.get("name") == name), None)


def write_result(folder: Path, result: Result, model: RankingModel, source: Mapping[str, object] | None = None) -> None:
    """metrics.json, per_query.jsonl and, for retrieval, run.trec. source: the config node of the data set."""
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
