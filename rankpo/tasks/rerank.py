"""The keys of task=rerank and their checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from rankpo.evaluation.metrics import parse_metric
from rankpo.evaluation.rules import Rules
from rankpo.models.engine.backends import check_backend
from rankpo.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class Rerank(Task):
    """Reranks the results of a first stage, and writes `output`/run.trec.

    With qrels, the task also writes metrics.json and per_query.jsonl.

    run: a TREC run. beir: the BEIR folder with the texts of the run. requests: a JSON Lines file with queries and
    documents. Exactly one of run and requests must be set.
    split: the split of the BEIR folder's qrels, or None for no qrels. qrels: a file that replaces the folder's qrels.
    depth: the number of documents to rerank for each query. The result excludes documents at lower ranks.
    normalize: applies a sigmoid to the scores.
    missing_ids: the action for ids of the run that have no text. `error` raises an error; `drop` removes these ids and
    reports their number.
    metrics: the metrics to compute, both for the first stage and for the new order.
    relevant_from, gain, ignore_identical_ids: the rules of evaluation, with the same meaning as for eval_datasets=beir.
    ignore_identical_ids excludes a document that has the same id as its query.
    on_window_error: the action of a listwise reranker if a window raises an error. `raise` stops the task; `keep`
    leaves the order of that window unchanged. The file rerank.jsonl lists all windows.
    max_failed_windows: the allowed fraction of failed windows. If it is exceeded, the task raises an error at its end.
    backend: the engine that generates the answers of a listwise reranker with decode=generate: `transformers`, `vllm`
    or `auto`. vllm: arguments of vllm.LLM.
    The call returns the metrics of the new order, or {} without qrels.
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

    work: ClassVar[str] = "rankpo.tasks.work.rerank"
    needs: ClassVar[frozenset[str]] = frozenset({"pairs", "lists"})

    def __post_init__(self) -> None:
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

    @property
    def rules(self) -> Rules:
        """The rules of evaluation, for both the first stage and the new order."""
        return Rules(relevant_from=self.relevant_from, gain=self.gain, ignore_identical_ids=self.ignore_identical_ids)
