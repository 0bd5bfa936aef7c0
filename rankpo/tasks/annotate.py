"""Annotate: the keys of task=annotate."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from rankpo.data.readers import files
from rankpo.judges.asking import ORDERS
from rankpo.judges.lists import ListSettings
from rankpo.judges.outcome import Unfinished as Unfinished
from rankpo.judges.pairs import PairSettings
from rankpo.judges.suspicious import TREATMENTS
from rankpo.retrieval.corpus import OWN, POOL, check_source
from rankpo.tasks.base import Task

MODES = ("pairs", "lists", "scores", "samples")
FEEDBACK = ("pairwise", "scalar")
DISAGREEMENT = ("drop", "keep")


@dataclass(frozen=True, kw_only=True)
class Annotate(Task):
    """Asks a judge for preferences or scores, and writes training data to the folder `output`.

    mode: `pairs` asks for preferences between passages. `lists` asks for the order of short lists. `scores` scores every candidate of the datasets and needs
    judge=scores. `samples` compares completions that task=sample wrote, and writes feedback.jsonl in HALOs' format.
    samples: the completions of mode=samples, as a file, folder or glob.
    feedback: `pairwise`, or `scalar` (needs judge=scores), which scores every completion.
    queries, corpus: `own` or `pool` of the datasets, or files.
    run: a TREC run to draw pairs from; None searches the corpus with the model.
    order: `both` asks twice, with the passages exchanged (a list is reversed); `random` or `given` asks once.
    on_disagreement: `drop` removes pairs on which the two orders disagree, and lists of which the two answers order
    fewer than half of the pairs alike; `keep` keeps them, pairs with p near 0.5.
    min_confidence: the lowest confidence of a kept preference, from 0 to 100; for lists, the percentage of their pairs
    that both answers order alike.
    suspicious: the treatment of pairs with a passage that holds marks or instructions for a judge. `keep` counts them
    in the report, `flag` also marks them in the training file, and `drop` excludes them before the judge is called.
    limit: the largest number of pairs or lists.
    dry_run: counts pairs, estimates the cost and shows prompts, without a call of the judge.
    max_calls: the budget of this start, in calls. max_cost: the budget of all starts together, in dollars.

    The task appends to annotations.jsonl and cost.jsonl after each call. At the end it writes report.json, failed.jsonl
    and preferences.jsonl (lists.jsonl with mode=lists, feedback.jsonl with mode=samples). The call returns the report, and raises `Unfinished` if a
    budget is spent or the server fails before all pairs are judged.
    """

    mode: str = "pairs"
    queries: str = "pool"
    corpus: str = "pool"
    run: str | None = None
    samples: str | None = None
    feedback: str = "pairwise"
    pairs: PairSettings = field(default_factory=PairSettings)
    lists: ListSettings = field(default_factory=ListSettings)
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
        if self.mode == "lists" and self.min_confidence and self.order != "both":
            raise ValueError(
                f"min_confidence={self.min_confidence} with mode=lists compares two answers for each list; "
                f"set order=both, got order={self.order}"
            )
        if self.feedback == "scalar" and self.mode != "samples":
            raise ValueError("feedback=scalar needs mode=samples; mode=scores scores the datasets' candidates")
        if self.samples is not None:
            files.find(self.samples, "samples")

    def reads_datasets(self) -> bool:
        return self.mode == "scores" or (
            self.mode in ("pairs", "lists") and bool({self.queries, self.corpus} & {OWN, POOL})
        )
