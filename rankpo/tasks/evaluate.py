"""task=evaluate: one model, or every checkpoint of a run, on eval_datasets; metrics.json, run.trec and a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankpo.config_errors import ConfigError

if TYPE_CHECKING:
    from rankpo.build import Experiment
    from rankpo.evaluation import Evaluator, Result
    from rankpo.metrics import MetricsLogger
    from rankpo.models.embedding import EmbeddingModel

RANKPO_METRICS = ("rankpo/recall@20", "rankpo/ndcg@20")


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Metrics of the model of the config, or of FINAL and all checkpoints of `run`. rankpo: its own variants too."""

    run: str | None = None
    metrics: Sequence[str] = ("ndcg@10", "ndcg@20", "mrr@10", "recall@20", "recall@100", "map@100")
    rankpo: bool = False
    top_k: int = 100
    output: str = "evaluation"

    def __post_init__(self) -> None:
        from rankpo.ranking_metrics import parse_metric

        for name in self.metrics:
            parse_metric(name)
        if self.top_k < 1:
            raise ValueError(f"top_k must be >= 1, got {self.top_k}")
        if self.run is not None and not Path(self.run).is_dir():
            raise ValueError(f"run={self.run}: no such run directory")

    def __call__(self, experiment: Experiment) -> list[dict[str, Any]]:
        """The table's rows, one for each model."""
        from rankpo import distributed
        from rankpo.metrics import MetricsLogger
        from rankpo.tasks.train import make_evaluators

        if not experiment.eval_datasets:
            raise ConfigError(["eval_datasets is empty; choose some, such as eval_datasets=[jobs_test]"])
        accelerator = distributed.make_accelerator(experiment.settings.precision)
        logger = MetricsLogger(main=distributed.rank() == 0)
        metrics = [*self.metrics, *(RANKPO_METRICS if self.rankpo else ())]
        evaluators = make_evaluators(experiment, metrics, logger.say)
        rows = []
        for name, folder in self._models(experiment):
            chosen = experiment if folder is None else with_model(experiment, folder)
            inputs = chosen.model.open_inputs(logger.say, chosen.explicit)
            model = chosen.model.build(inputs, logger.say).to(accelerator.device)
            rows.append({"model": name, **self._evaluate(model, evaluators, Path(self.output) / name, logger)})
        logger.table(rows)
        return rows

    def _models(self, experiment: Experiment) -> list[tuple[str, Path | None]]:
        if self.run is None:
            return [("model", None)]
        folders = [path for path in sorted(Path(self.run).glob("checkpoints/step-*/FINAL"), key=_step) if path.is_dir()]
        named: list[tuple[str, Path | None]] = [(path.parent.name, path) for path in folders]
        final = Path(self.run) / "FINAL"
        if final.is_dir():
            named.append(("FINAL", final))
        if not named:
            raise ConfigError([f"task.run={self.run} holds neither FINAL nor checkpoints with a model"])
        return named

    def _evaluate(
        self, model: EmbeddingModel, evaluators: Sequence[Evaluator], folder: Path, logger: MetricsLogger
    ) -> dict[str, float]:
        values: dict[str, float] = {}
        for evaluator in evaluators:
            result = evaluator.evaluate(model)
            values.update({f"{evaluator.name}/{name}": value for name, value in result.metrics.items()})
            if logger.main:
                write_result(folder / evaluator.name, result, model)
        return values


def _step(path: Path) -> int:
    return int(path.parent.name.removeprefix("step-"))


def with_model(experiment: Experiment, folder: Path) -> Experiment:
    """The same experiment with another model folder."""
    return replace(experiment, model=replace(experiment.model, load_from=str(folder), random=None))


def write_result(folder: Path, result: Result, model: EmbeddingModel) -> None:
    """metrics.json, per_query.jsonl and, for retrieval, run.trec."""
    from rankpo.retrieval.trec import write_run

    folder.mkdir(parents=True, exist_ok=True)
    summary: Mapping[str, Any] = {
        "metrics": result.metrics,
        "counts": result.counts,
        "settings": model.settings.to_json(),
    }
    (folder / "metrics.json").write_text(json.dumps(summary, indent=1))
    with (folder / "per_query.jsonl").open("w") as file:
        for query, values in result.per_query.items():
            file.write(json.dumps({"query": query, **values}) + "\n")
    if result.run:
        write_run(folder / "run.trec", result.run)
