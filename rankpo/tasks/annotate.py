"""Annotate: the keys of task=annotate."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from rankpo.data.readers import files
from rankpo.judges.annotation import ORDERS
from rankpo.judges.outcome import Unfinished as Unfinished
from rankpo.judges.pairs import PairSettings
from rankpo.judges.suspicious import TREATMENTS
from rankpo.retrieval.corpus import OWN, POOL, check_source
from rankpo.tasks.base import Task

MODES = ("pairs", "scores", "samples")
FEEDBACK = ("pairwise", "scalar")
DISAGREEMENT = ("drop", "keep")


@dataclass(frozen=True, kw_only=True)
class Annotate(Task):
    """mode: `pairs` asks for preferences; `scores` (judge=scores) scores every candidate of the datasets; `samples`
    asks about completions that task=sample wrote, and writes HALOs' feedback.jsonl.

    samples: their file, folder or glob. feedback: `pairwise`, or `scalar` (judge=scores): every completion's score.
    queries, corpus: `own` or `pool` of the datasets, or files. run: a TREC run to draw pairs from; None searches
    the corpus with the model. order: `both`, `random` or `given`. on_disagreement: pairs on which both orders differ
    are left out (`drop`) or kept (`keep`, with p near .5). min_confidence: 0 to 100. suspicious: pairs with a passage
    that holds marks or instructions for a judge are counted in the report (`keep`), marked in the training file too
    (`flag`), or not asked about (`drop`). limit: pairs. dry_run: counts,
    estimates and shows prompts, and asks nothing. max_calls: of one start; max_cost: dollars of all starts.

    `output` holds annotations.jsonl and cost.jsonl (appended to, call by call), and at the end report.json,
    failed.jsonl and preferences.jsonl (feedback.jsonl of samples). The call returns the report, and raises `Unfinished`
    where a budget or the server ended the work before its end.
    """

    mode: str = "pairs"
    queries: str = "pool"
    corpus: str = "pool"
    run: str | None = None
    samples: str | None = None
    feedback: str = "pairwise"
    pairs: PairSettings = field(default_factory=PairSettings)
    order: str = "both"
    on_disagreement: str = "drop"
    min_confidence: float = 0
    suspicious: str = "flag"
    max_reasks: int = 1
    max_calls: int | None = None
    max_cost: float | None = None
    limit: int | None = None
    dry_run: bool = False
    output: str = "annotate"

    work: ClassVar[str] = "rankpo.tasks.work.annotate"
    several_processes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        checked = {
            "mode": MODES,
            "order": ORDERS,
            "on_disagreement": DISAGREEMENT,
            "feedback": FEEDBACK,
            "suspicious": TREATMENTS,
        }
        for name, allowed in checked.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("limit", "max_calls"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1 or null, got {value}")
        check_source(self.queries, "queries")
        check_source(self.corpus, "corpus")
        if self.run is not None and not Path(self.run).is_file():
            raise FileNotFoundError(f"run={self.run}: no such file; task=search writes one")
        if (self.mode == "samples") != (self.samples is not None):
            raise ValueError(f"samples must be set with mode=samples, and only then, got {self.samples!r}")
        if self.feedback == "scalar" and self.mode != "samples":
            raise ValueError("feedback=scalar needs mode=samples; mode=scores scores the datasets' candidates")
        if self.samples is not None:
            files.find(self.samples, "samples")

    def reads_datasets(self) -> bool:
        return self.mode == "scores" or (self.mode == "pairs" and bool({self.queries, self.corpus} & {OWN, POOL}))
