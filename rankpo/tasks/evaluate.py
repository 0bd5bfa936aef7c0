"""task=evaluate: one model, or every checkpoint of a run, on eval_datasets; metrics.json, run.trec and a table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankpo.errors import ConfigError
from rankpo.runs.checkpoints import CheckpointStore
from rankpo.storage.atomic import replace_text
from rankpo.tasks.base import Task
from rankpo.tasks.models import ModelOfRun, build_model, load_weights

if TYPE_CHECKING:
    from rankpo.config.experiment import Experiment
    from rankpo.evaluation.base import Evaluator, Result
    from rankpo.models.embedding.model import EmbeddingModel
    from rankpo.runs.logger import MetricsLogger

START = "start"
RANKPO_METRICS = ("rankpo/recall@20", "rankpo/ndcg@20", "rankpo/auc@20")


@dataclass(frozen=True, kw_only=True)
class Evaluate(Task):
    """Metrics of the model of the config; or of a `run`: its start model, its checkpoints and FINAL, with `retention/…`,
    each retrieval metric over the start model's. start: a folder or hub id to measure retention against without a run;
    its own numbers stand in the table only.
    rankpo: its own variants too.
    """

    run: str | None = None
    start: str | None = None
    metrics: Sequence[str] = ("ndcg@10", "ndcg@20", "mrr@10", "recall@20", "recall@100", "map@100")
    rankpo: bool = False
    top_k: int = 100
    output: str = "evaluation"

    def __post_init__(self) -> None:
        from rankpo.evaluation.metrics import parse_metric

        for name in self.metrics:
            parse_metric(name)
        if self.top_k < 1:
            raise ValueError(f"top_k must be >= 1, got {self.top_k}")
        if self.run is not None and not Path(self.run).is_dir():
            raise ValueError(f"run={self.run}: no such run directory")
        if self.run is not None and self.start is not None:
            raise ValueError(
                f"start must be null with run, whose own start model it is compared with, got {self.start!r}"
            )

    def __call__(self, experiment: Experiment) -> list[dict[str, object]]:
        """The table's rows, one for each model."""
        from rankpo.tasks.evaluators import evaluators_of

        if not experiment.eval_datasets:
            raise ConfigError(["eval_datasets is empty; choose some, such as eval_datasets=[jobs_test]"])
        run = None if self.run is None else ModelOfRun.of(Path(self.run))
        kind, loss = (experiment.model, experiment.loss) if run is None else (run.kind, run.loss)
        session = self.open(experiment)
        logger = session.logger
        metrics = [*self.metrics, *(RANKPO_METRICS if self.rankpo else ())]
        evaluators = evaluators_of(kind, loss, experiment, metrics, logger.say, self.top_k)
        check_names_of(evaluators)
        rows = []
        for name, model in self._models(experiment, run, logger.say):
            session.prepared(model)
            written = logger.main and not (name == START and self.start is not None)  # a run's report shows its models
            folder = Path(self.output) / name if written else None
            rows.append(
                {"model": name, **self._evaluate(model, evaluators, folder, experiment.config["eval_datasets"])}
            )
        kept = [f"{evaluator.name}/{name}" for evaluator in evaluators if evaluator.retained for name in self.metrics]
        if rows[0]["model"] == START:
            rows = [{**row, **retention(row, rows[0], kept)} for row in rows]
        logger.table(rows)
        if any("accuracy" in evaluator.metrics for evaluator in evaluators) and "vectors" in kind.gives:
            self._remind(kept, logger)
        return rows

    def _remind(self, kept: Sequence[str], logger: MetricsLogger) -> None:
        """Agreement with preferences can rise while retrieval gets worse: names what to add to see both."""
        if not kept:
            logger.say(
                "This table shows agreement with preferences, and not what retrieval lost for it. To see both, add a data set "
                "with a corpus and relevance judgements to eval_datasets, such as beir or jobs_test."
            )
        elif self.run is None and self.start is None:
            logger.say(
                "This table does not show how much of the start model's quality is kept. To see it, set task.start to the "
                "model that training began from, or task.run to the run."
            )

    def _models(
        self, experiment: Experiment, run: ModelOfRun | None, say: Callable[[str], None]
    ) -> Iterator[tuple[str, Any]]:
        """The model of the config, after `start`; or of a run: what it started from, each checkpoint by step, FINAL."""
        if run is None:
            if self.start is not None:
                yield START, build_model(started_from(experiment.model, self.start), (), say)
            yield "model", build_model(experiment.model, experiment.explicit, say)
            return
        folder = Path(str(self.run))
        model = run.start(say)
        yield START, model
        for checkpoint in CheckpointStore(folder).list():
            load_weights(model, checkpoint)
            yield checkpoint.path.name, model
        if (folder / "FINAL").is_dir():
            yield "FINAL", run.final(folder / "FINAL", say)

    def _evaluate(
        self,
        model: EmbeddingModel,
        evaluators: Sequence[Evaluator],
        folder: Path | None,
        datasets: Mapping[str, Mapping[str, Any]],
    ) -> dict[str, float]:
        """Metrics by data set and name; written to `folder` if there is one. datasets: their config nodes by name."""
        values: dict[str, float] = {}
        for evaluator in evaluators:
            result = evaluator.evaluate(model)
            values.update({f"{evaluator.name}/{name}": value for name, value in result.metrics.items()})
            if folder is not None:
                write_result(folder / evaluator.name, result, model, source_of(evaluator.name, datasets))
        return values


def retention(row: Mapping[str, Any], start: Mapping[str, object], names: Sequence[str]) -> dict[str, float]:
    """Each metric over the start model's: a gain in agreement means little without it."""
    return {
        f"retention/{name}": row[name] / start[name] for name in names if row.get(name) is not None and start.get(name)
    }


def started_from(config: Any, start: str) -> Any:
    """The settings of a start model: a saved folder's own, or those of the config for a hub id."""
    source = {"load_from": start} if Path(start).is_dir() else {"load_from": None, "name_or_path": start}
    return replace(config, **source, random=None, use_peft=False)


def check_names_of(evaluators: Sequence[Evaluator]) -> None:
    """Raises ConfigError, before anything is encoded, for ids that run.trec cannot hold."""
    from rankpo.data.readers.trec import check_names

    try:
        for evaluator in evaluators:
            check_names(evaluator.names(), f"eval_datasets.{evaluator.name}")
    except ValueError as error:
        raise ConfigError([str(error)]) from error


def source_of(name: str, datasets: Mapping[str, Mapping[str, object]]) -> Mapping[str, object] | None:
    """The config node of a data set by its `name` key, so that a report can read its texts again; None if unknown."""
    return next((node for node in datasets.values() if node.get("name") == name), None)


def write_result(
    folder: Path, result: Result, model: EmbeddingModel, source: Mapping[str, object] | None = None
) -> None:
    """metrics.json, per_query.jsonl and, for retrieval, run.trec. source: the config node of the data set."""
    from rankpo.data.readers.trec import write_run

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
