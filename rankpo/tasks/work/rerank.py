"""The work of task=rerank: reranking of a first stage's run or of requests, with metrics if there are qrels."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

from scipy.special import expit

from rankpo.data.readers.beir import Beir
from rankpo.data.readers.requests import Request, of_file, of_run
from rankpo.data.readers.trec import read_qrels, write_run
from rankpo.errors import ConfigError
from rankpo.models.engine.vllm import choose_backend
from rankpo.models.listwise.config import ListwiseKind
from rankpo.models.listwise.inputs import ListwiseInputs
from rankpo.models.listwise.vllm import VllmListwiseModel
from rankpo.runs import processes
from rankpo.storage.atomic import replace_text
from rankpo.tasks.work.rerank_windows import report_windows

if TYPE_CHECKING:
    import numpy as np
    import torch

    from rankpo.config.experiment import Experiment
    from rankpo.evaluation.metrics import Evaluation
    from rankpo.models.listwise.ranked import RankedList
    from rankpo.models.settings import Settings
    from rankpo.runs.logger import MetricsLogger
    from rankpo.tasks.rerank import Rerank


class Reranks(Protocol):
    """A model that scores the documents of requests. `rerank` returns [documents] float32 per request, on every rank."""

    @property
    def settings(self) -> Settings: ...

    def rerank(self, requests: Sequence[Request]) -> list[np.ndarray]: ...


@runtime_checkable
class RanksLists(Protocol):
    """A listwise model, whose result lists the outcome of each window of documents."""

    def rank_requests(self, requests: Sequence[Request], on_window_error: str = "raise") -> list[RankedList]: ...


def run(task: Rerank, experiment: Experiment) -> dict[str, float]:
    """Returns the metrics of the new order, or {} without qrels."""
    session = task.open(experiment)
    logger, folder = session.logger, Path(task.output)
    requests, dropped = _requests(task)
    model = _model(task, experiment, session.device, logger.say)
    ranked: list[RankedList] | None = None
    with session.accelerator.autocast():
        if isinstance(model, RanksLists):
            ranked = model.rank_requests(requests, task.on_window_error)
            scores = [item.by_document() for item in ranked]
        else:
            scores = model.rerank(requests)
    if task.normalize:
        scores = [_sigmoid(row) for row in scores]
    new = {
        request.id: dict(zip(request.document_ids, map(float, row), strict=True))
        for request, row in zip(requests, scores, strict=True)
    }
    counts = {"queries": len(new), "documents": sum(map(len, new.values())), "dropped": dropped}
    logger.say(", ".join(f"{count} {name}" for name, count in counts.items()))
    settings = model.settings.to_json()
    found = _write(task, requests, new, counts, settings, logger) if logger.main else {}
    if ranked is not None:
        report_windows(folder, requests, ranked, settings, logger, task.max_failed_windows)
    processes.barrier()
    return found


def _model(task: Rerank, experiment: Experiment, device: torch.device, say: Callable[[str], None]) -> Reranks:
    config = experiment.model
    inputs = config.open_inputs(say, experiment.explicit)
    if isinstance(config, ListwiseKind) and isinstance(inputs, ListwiseInputs):
        hindrances = {"it gives no access to logits; set model.decode=generate": inputs.settings.decode != "generate"}
        if choose_backend(task.backend, config, hindrances) == "vllm":
            say("vllm generates the answers")
            return VllmListwiseModel(config, inputs, experiment.seed, task.vllm)
    elif task.backend == "vllm":
        raise ConfigError(["task.backend=vllm is for listwise rerankers, and this model computes scores"])
    return cast("Reranks", config.build(inputs, say).to(device))


def _folder(task: Rerank) -> Beir | None:
    if task.beir is None:
        return None
    split = None if task.qrels is not None else task.split
    return Beir(name="rerank", path=task.beir, split=split, document_format=task.document_format, missing_ids="drop")


def _requests(task: Rerank) -> tuple[list[Request], int]:
    """The requests with their `depth` best documents, and how many documents have no text."""

    def hits(query: str, scores: Mapping[str, float]) -> dict[str, float]:
        return task.rules.hits(query, scores, task.depth)

    if task.requests is not None:
        requests = [request.chosen(hits) for request in of_file(task.requests, task.document_format)]
        names = [request.id for request in requests]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ConfigError([f"task.requests={task.requests}: the query id {twice!r} appears more than once"])
        return requests, 0
    folder = _folder(task)
    assert task.run is not None and folder is not None
    return of_run(task.run, folder, task.missing_ids, hits)


def _judgements(task: Rerank) -> Mapping[str, Mapping[str, float]] | None:
    if task.qrels is not None:
        return read_qrels(task.qrels)
    folder = _folder(task)
    return None if folder is None or folder.split is None else folder.qrels()


def _write(
    task: Rerank,
    requests: Sequence[Request],
    new: Mapping[str, Mapping[str, float]],
    counts: Mapping[str, int],
    settings: Mapping[str, object],
    logger: MetricsLogger,
) -> dict[str, float]:
    """Writes the run and, with qrels, the metrics of both orders. Returns the metrics of the new order."""
    folder = Path(task.output)
    write_run(folder / "run.trec", new)
    judgements = _judgements(task)
    if judgements is None:
        logger.say(f"{folder}/run.trec written")
        return {}
    old = {request.id: dict(zip(request.document_ids, request.scores, strict=True)) for request in requests}
    if (line := task.rules.left_out(judgements)) is not None:
        logger.say(line)
    before, after = (task.rules.measure(run, judgements, task.metrics) for run in (old, new))
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
    return expit(scores.astype("float64")).astype("float32")  # float32 as in run.trec, so that ties are the same.
