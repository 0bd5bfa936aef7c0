"""task=rerank: a first stage's run, or requests in JSON Lines, put in a new order; with metrics where there are qrels."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rankpo.errors import ConfigError
from rankpo.models.engine.vllm import check_backend, choose_backend
from rankpo.storage.atomic import replace_text
from rankpo.tasks.base import Task

if TYPE_CHECKING:
    import numpy as np

    from rankpo.config.experiment import Experiment
    from rankpo.data.readers.requests import Request
    from rankpo.evaluation.metrics import Evaluation
    from rankpo.evaluation.rules import Rules
    from rankpo.runs.logger import MetricsLogger


@dataclass(frozen=True, kw_only=True)
class Rerank(Task):
    """Writes `output`/run.trec, and metrics.json and per_query.jsonl where judgements are known.

    run: a TREC run, whose texts are in the BEIR folder `beir`; or requests: a JSON Lines file with texts of its own.
    split: of the folder's judgements, None to do without; qrels: a file of judgements instead. depth: documents of
    each query that are scored; those below are left out of the result. normalize: sigmoid of the scores. missing_ids:
    ids of the run without a text are an `error`, or left out (`drop`, counted). metrics: of the new order, beside the
    first stage's. relevant_from, gain, ignore_identical_ids: the rules of the collection, as those of
    eval_datasets=beir; a document whose id is the query's is not scored. on_window_error: of listwise rerankers, whose windows are listed in rerank.jsonl: `keep` leaves the
    order of a window that raised an error; more failures than max_failed_windows, a fraction of all windows, end the
    task with an error once everything is written. backend: writes the answers of a listwise reranker with
    decode=generate: `transformers`, `vllm`, or `auto`; vllm: arguments of vllm.LLM.
    """

    run: str | None = None
    beir: str | None = None
    requests: str | None = None
    split: str | None = "test"
    qrels: str | None = None
    depth: int | None = 100
    document_format: str = "{title} {text}"
    missing_ids: str = "error"
    relevant_from: int = 1
    gain: str = "linear"
    ignore_identical_ids: bool = True
    normalize: bool = False
    metrics: Sequence[str] = ("ndcg@10", "mrr@10", "map", "recall@100")
    on_window_error: str = "raise"
    max_failed_windows: float = 0.05
    backend: str = "auto"
    vllm: Mapping[str, object] = field(default_factory=dict)
    output: str = "rerank"

    needs: ClassVar[frozenset[str]] = frozenset({"pairs", "lists"})

    def __post_init__(self) -> None:
        from rankpo.evaluation.metrics import parse_metric

        if (self.run is None) == (self.requests is None):
            raise ValueError("run (a TREC run, with beir) or requests (a JSON Lines file) must be set, and only one")
        if self.run is not None and self.beir is None:
            raise ValueError("run holds ids only: beir must be set to the folder with their texts")
        for name in ("run", "beir", "requests", "qrels"):
            if getattr(self, name) is not None and not Path(getattr(self, name)).exists():
                raise FileNotFoundError(f"{name}: {getattr(self, name)} does not exist")
        if self.depth is not None and self.depth < 1:
            raise ValueError(f"depth must be >= 1 or null, got {self.depth}")
        if self.missing_ids not in ("error", "drop"):
            raise ValueError(f"missing_ids must be one of error, drop, got {self.missing_ids!r}")
        if self.on_window_error not in ("raise", "keep"):
            raise ValueError(f"on_window_error must be one of raise, keep, got {self.on_window_error!r}")
        if not 0 <= self.max_failed_windows <= 1:
            raise ValueError(f"max_failed_windows must be in [0, 1], got {self.max_failed_windows}")
        _ = self.rules
        check_backend(self.backend)
        for name in self.metrics:
            parse_metric(name)

    def __call__(self, experiment: Experiment) -> dict[str, float]:
        """The metrics of the new order, or {} without judgements."""
        from rankpo.runs import processes
        from rankpo.tasks.rerank_windows import report_windows

        session = self.open(experiment)
        logger = session.logger
        requests, dropped = self._requests()
        model = self._model(experiment, session.device, logger.say)
        with session.accelerator.autocast():
            listwise = experiment.model.kind == "listwise"
            ranked = model.rank_requests(requests, self.on_window_error) if listwise else None
            scores = model.rerank(requests) if ranked is None else [item.by_document() for item in ranked]
        if self.normalize:
            scores = [_sigmoid(row) for row in scores]
        new = {
            request.id: dict(zip(request.document_ids, map(float, row), strict=True))
            for request, row in zip(requests, scores, strict=True)
        }
        counts = {"queries": len(new), "documents": sum(map(len, new.values())), "dropped": dropped}
        logger.say(", ".join(f"{count} {name}" for name, count in counts.items()))
        found: dict[str, float] = {}
        if logger.main:
            found = self._write(Path(self.output), requests, new, counts, model.settings.to_json(), logger)
        if ranked is not None:
            report_windows(
                Path(self.output), requests, ranked, model.settings.to_json(), logger, self.max_failed_windows
            )
        processes.barrier()
        return found

    def _model(self, experiment: Experiment, device: object, say: Callable[[str], None]) -> Any:
        config: Any = experiment.model
        inputs = config.open_inputs(say, experiment.explicit)
        listwise = config.kind == "listwise"
        if self.backend == "vllm" and not listwise:
            raise ConfigError(["task.backend=vllm writes answers of listwise rerankers; this one gives scores"])
        reads = {"it hands out no logits; set model.decode=generate": listwise and inputs.settings.decode != "generate"}
        if listwise and choose_backend(self.backend, config, reads) == "vllm":
            from rankpo.models.listwise.vllm import VllmListwiseModel

            say("answers by vllm")
            return VllmListwiseModel(config, inputs, experiment.seed, self.vllm)
        return config.build(inputs, say).to(device)

    @property
    def rules(self) -> Rules:
        """The rules by which both orders are measured."""
        from rankpo.evaluation.rules import Rules

        return Rules(relevant_from=self.relevant_from, gain=self.gain, ignore_identical_ids=self.ignore_identical_ids)

    def _first_stage(self, query: str, scores: Mapping[str, float]) -> dict[str, float]:
        return self.rules.hits(query, scores, self.depth)

    def _folder(self) -> Any:
        from rankpo.data.readers.beir import Beir

        if self.beir is None:
            return None
        split = None if self.qrels is not None else self.split
        return Beir(
            name="rerank", path=self.beir, split=split, document_format=self.document_format, missing_ids="drop"
        )

    def _requests(self) -> tuple[list[Request], int]:
        from rankpo.data.readers.requests import of_file, of_run

        if self.requests is not None:
            requests = [request.chosen(self._first_stage) for request in of_file(self.requests, self.document_format)]
            names = [request.id for request in requests]
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise ConfigError([f"task.requests={self.requests}: the query id {twice!r} stands twice"])
            return requests, 0
        assert self.run is not None
        return of_run(self.run, self._folder(), self.missing_ids, self._first_stage)

    def _judgements(self) -> Mapping[str, Mapping[str, float]] | None:
        from rankpo.data.readers.trec import read_qrels

        if self.qrels is not None:
            return read_qrels(self.qrels)
        folder = self._folder()
        return None if folder is None or folder.split is None else folder.qrels()

    def _write(
        self,
        folder: Path,
        requests: Sequence[Request],
        new: Mapping[str, Mapping[str, float]],
        counts: Mapping[str, int],
        settings: Mapping[str, object],
        logger: MetricsLogger,
    ) -> dict[str, float]:
        from rankpo.data.readers.trec import write_run

        write_run(folder / "run.trec", new)
        judgements = self._judgements()
        if judgements is None:
            logger.say(f"{folder}/run.trec written")
            return {}
        old = {request.id: dict(zip(request.document_ids, request.scores, strict=True)) for request in requests}
        before, after = (self.rules.measure(run, judgements, self.metrics) for run in (old, new))
        _write_metrics(folder, before, after, {**counts, **after.counts}, settings)
        logger.table([{"order": "first stage", **before.metrics}, {"order": "reranked", **after.metrics}])
        return dict(after.metrics)


def _write_metrics(
    folder: Path, before: Evaluation, after: Evaluation, counts: Mapping[str, int], settings: Mapping[str, object]
) -> None:
    summary = {"metrics": after.metrics, "first_stage": before.metrics, "counts": counts, "settings": settings}
    replace_text(folder / "metrics.json", json.dumps(summary, indent=1))
    with (folder / "per_query.jsonl").open("w", encoding="utf-8") as file:
        for query, values in after.per_query.items():
            file.write(json.dumps({"query": query, **values}) + "\n")


def _sigmoid(scores: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    return expit(scores.astype("float64")).astype("float32")  # what run.trec can hold: equal there, equal here
