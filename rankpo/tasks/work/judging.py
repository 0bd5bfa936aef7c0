"""Judging: the files of task=annotate in a folder, and the judging of what is not in them yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from rankpo.judges.asking import Asking, answers_file
from rankpo.judges.costs import Costs
from rankpo.judges.forms import Answer, Paid
from rankpo.judges.records import Records
from rankpo.runs.logger import MetricsLogger, counting

if TYPE_CHECKING:
    from rankpo.judges.base import Judge
    from rankpo.tasks.annotate import Annotate

ItemT = TypeVar("ItemT")
RecordT = TypeVar("RecordT", bound=Mapping[str, Any])


class Judging(Generic[RecordT]):
    """The records of a judge about pairs or lists, with the three files that hold them."""

    def __init__(self, task: Annotate, cache_dir: Path, judge: Judge) -> None:
        self.task, self.judge = task, judge
        self.folder = Path(task.output)
        self.annotations: Records[RecordT] = Records(self.folder / "annotations.jsonl", "asked")
        self.answers: Records[Answer] = Records(answers_file(cache_dir, judge), "prompt_hash", shared=True)
        self.spent: Records[Paid] = Records(self.folder / "cost.jsonl", "call")
        self.costs = Costs(judge.price, self.spent)

    def known(self, names: Sequence[str]) -> list[RecordT]:
        """The records of the names that have one."""
        return [record for name in names if (record := self.annotations.get(name)) is not None]

    def ask_all(self, asker: Asking, plan: Plan[ItemT, RecordT], logger: MetricsLogger) -> Judged:
        """Judges the items that have no record yet."""
        names, failures = plan.names, dict[str, Exception]()
        todo = [(number, item) for number, item in enumerate(plan.items) if self.annotations.get(names[number]) is None]
        logger.say(f"{len(names)} {asker.items}, {len(names) - len(todo)} of them judged before")
        with counting("annotate", len(todo), shown=True) as advance:
            assert advance is not None

            def done(number: int, record: RecordT) -> None:
                self.annotations.add({"asked": names[number], **record})  # type: ignore[arg-type]
                advance(1)

            def failed(number: int, error: Exception) -> None:
                failures[plan.keys[number]] = error
                advance(1)

            return Judged(asker.run_all(todo, plan.work, done, failed), failures)

    def close(self) -> None:
        self.judge.close()
        for file in (self.annotations, self.answers, self.spent):
            file.close()


@dataclass(frozen=True, kw_only=True)
class Plan(Generic[ItemT, RecordT]):
    """Items to judge. names: what their records answer. keys: their names in failed.jsonl. work: makes a record."""

    items: Sequence[ItemT]
    names: Sequence[str]
    keys: Sequence[str]
    work: Callable[[ItemT], RecordT]


@dataclass(frozen=True)
class Judged:
    """reason: of an early stop, or None. failures: errors by the key of an item."""

    reason: str | None
    failures: Mapping[str, Exception]
