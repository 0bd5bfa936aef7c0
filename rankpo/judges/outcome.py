"""The final files of an annotation: the report, the failures, and the preferences for training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rankpo.judges.costs import Costs, cost
from rankpo.judges.forms import Agreement, Annotation
from rankpo.judges.grades import EqualGrades
from rankpo.judges.report import failure_lines, report
from rankpo.judges.suspicious import signs_of, summary
from rankpo.storage.atomic import replace_text

if TYPE_CHECKING:
    from rankpo.judges.samples import Samples
    from rankpo.runs.logger import MetricsLogger


class Unfinished(RuntimeError):
    """Raised if the task ends before all pairs are judged; results are kept, and the same command continues."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Keys that select annotated pairs for training.

    flag: whether to mark pairs with a suspicious passage. prompts: the prompt of a query by its text, for queries whose
    record states one.
    """

    keep_disagreement: bool
    min_confidence: float
    flag: bool
    prompts: Mapping[str, str]

    def keeps(self, record: Annotation) -> bool:
        confidence = record["confidence_score"]
        return (confidence is None or confidence >= self.min_confidence) and (record["agree"] or self.keep_disagreement)

    def flagged(self, record: Annotation) -> Annotation:
        """Returns a record for the training file, with `suspicious` if a passage has signs, and the query's prompt."""
        plain = record.copy()
        plain.pop("asked", None)
        query = plain["query"]
        if isinstance(query, str) and (prompt := self.prompts.get(query)) is not None:
            plain["prompt"] = prompt
        if self.flag and (found := signs_of(record)):
            plain["suspicious"] = found
        return plain


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The results of an annotation.

    records: of the pairs with a verdict. num_drawn: requested pairs. num_dropped: suspicious pairs that were excluded.
    equal_grades: of the drawn pairs. failures: by pair. reason: for an early stop, or None.
    """

    records: Sequence[Annotation]
    num_drawn: int
    num_dropped: int
    equal_grades: EqualGrades
    failures: Mapping[str, Exception]
    reason: str | None

    def write(
        self, folder: Path, chosen: Chosen, costs: Costs, samples: Samples | None, logger: MetricsLogger
    ) -> dict[str, object]:
        """Writes the files and returns the report. Raises Unfinished after an early stop or without any verdict.

        In this case, the training file of an earlier start is kept.
        """
        failed, notice = failure_lines(self.failures)
        suspicious = summary(self.records, self.num_dropped)
        agreement = report(self.records)
        grades = {"count": self.equal_grades.count, "of": self.equal_grades.known, "share": self.equal_grades.share}
        whole = {**agreement, "equal_grades": grades, "suspicious": suspicious}
        whole |= {"failed": len(self.failures), **costs.summary()}
        path = folder / ("preferences.jsonl" if samples is None else "feedback.jsonl")
        if self.records or not path.exists():
            replace_text(folder / "report.json", json.dumps(whole, indent=1))
        replace_text(folder / "failed.jsonl", "".join(json.dumps(line) + "\n" for line in failed))
        if self.reason is not None:
            raise Unfinished(f"{self.reason} ({len(self.records)} of {self.num_drawn} pairs are judged)")
        if not self.records:
            raise Unfinished(f"none of the {self.num_drawn} pairs could be judged; {self._kept(path)}{notice}")
        kept = [record for record in self.records if chosen.keeps(record)]
        if samples is None:
            lines = [json.dumps(chosen.flagged(record)) + "\n" for record in kept]
        else:
            lines = [samples.pairwise(chosen.flagged(record)) for record in kept]
        replace_text(path, "".join(lines))
        logger.table([self._row(len(kept), agreement, costs)], f"\n{path} written")
        if suspicious["pairs"]:
            logger.say(
                f"{suspicious['pairs']} of {len(self.records)} pairs have a passage with marks or instructions for the "
                "judge (suspicious in report.json); task.suspicious=drop leaves such pairs out"
            )
        if notice:
            logger.say(
                f"{len(self.failures)} of {self.num_drawn} pairs have no verdict and are left out: {notice}; "
                f"{folder / 'failed.jsonl'} lists them"
            )
        return whole

    @staticmethod
    def _kept(path: Path) -> str:
        return f"{path} of an earlier start stays as it was; " if path.exists() else ""

    def _row(self, num_kept: int, agreement: Agreement, costs: Costs) -> dict[str, object]:
        row: dict[str, object] = {
            "pairs": len(self.records),
            "kept": num_kept,
            "failed": len(self.failures),
            "calls": costs.start.calls,
        }
        row |= {name.replace("_", " "): count for name, count in costs.start.tokens.items()}
        if costs.price:
            row["dollars"] = cost(costs.start.tokens, costs.price)
        row["first shown preferred"] = agreement["first_shown_preferred"]["share"]
        row["orders agree"] = agreement["orders_agree"]["share"]
        row["agree with ranking"] = agreement["agrees_with_ranking"]["share"]
        return row
