"""Rerank: the keys of task=rerank."""

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

    run: a TREC run, whose texts are in the BEIR folder `beir`. requests: a JSON Lines file that holds its own texts.
    Exactly one of the two is set.
    split: the split of the folder's qrels; None reads no qrels. qrels: a file of qrels to use instead.
    depth: the number of documents of each query that are scored; lower ranks are left out of the result.
    normalize: applies a sigmoid to the scores.
    missing_ids: `error` raises if an id of the run has no text; `drop` removes and counts such ids.
    metrics: the metrics of the new order and of the first stage.
    relevant_from, gain, ignore_identical_ids: the rules of the collection, as for eval_datasets=beir. With
    ignore_identical_ids, a document with the id of its query is not scored.
    on_window_error: for listwise rerankers, whose windows are listed in rerank.jsonl. `keep` keeps the order of a window
    that raised an error. The task raises at its end if the fraction of failed windows exceeds max_failed_windows.
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
        """The rules by which both orders are measured."""
        return Rules(relevant_from=self.relevant_from, gain=self.gain, ignore_identical_ids=self.ignore_identical_ids)
