"""Annotation of short lists by a judge, and the files of its results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rankpo.judges.asking import Asking
from rankpo.judges.base import Judge
from rankpo.judges.costs import Costs, cost
from rankpo.judges.forms import ListAnnotation, ListCall
from rankpo.judges.grades import EqualGrades
from rankpo.judges.lists import Shortlist
from rankpo.judges.orders import combine_orders, parse_order
from rankpo.judges.outcome import Unfinished
from rankpo.judges.records import digest
from rankpo.judges.report import failure_lines
from rankpo.judges.suspicious import signs
from rankpo.storage.atomic import replace_text
from rankpo.types import Prompt

if TYPE_CHECKING:
    from rankpo.runs.logger import MetricsLogger

MANY_ALIKE = 0.5  # The smallest share of pairs that two answers order alike, for on_disagreement=drop.


@dataclass(kw_only=True)
class ListAnnotator(Asking):
    """Asks a judge about lists. order: `both` asks twice, the second time with the list reversed; else once."""

    texts: Mapping[str, str]
    queries: Mapping[str, Prompt]
    order: str = "both"

    items: ClassVar[str] = "lists"

    def annotate(self, shown: Shortlist, is_reversed: bool = False) -> ListAnnotation:
        """One list's record, with the order and the calls behind it. is_reversed: how `random` shows it."""
        query, passages = self.queries[shown.query_id], [self.texts[identity] for identity in shown.ids]
        given = swapped = None
        calls: list[ListCall] = []
        if self.order == "both" or not is_reversed:
            given = self._ranking(query, passages, calls, "given")
        if self.order == "both" or is_reversed:
            found = self._ranking(query, passages[::-1], calls, "reversed")
            swapped = [len(passages) - 1 - place for place in found]
        order = combine_orders(given, swapped)
        return {
            "query_id": shown.query_id,
            "passage_ids": list(shown.ids),
            "query": query,
            "passages": passages,
            "ranking": list(order.ranking),
            "agreement": order.agreement,
            "passage_ranks": list(shown.ranks),
            "order": self.order,
            "model": calls[0]["model"],
            "calls": calls,
        }

    def _ranking(self, query: Prompt, passages: Sequence[str], calls: list[ListCall], order: str) -> Sequence[int]:
        request = dict(self.judge.request_list(query, passages))
        ranking, record = self.verdict(request, lambda text: parse_order(text, len(passages)))
        calls.append(
            {
                "order": order,
                "ranking": list(ranking),
                "text": record["text"],
                "model": record["model"],
                "prompt_hash": record["prompt_hash"],
            }
        )
        return ranking


def asked_list(
    judge: Judge, shown: Shortlist, queries: Mapping[str, Prompt], texts: Mapping[str, str], order: str
) -> str:
    """What a list's record answers: one of another judge, of other words or of other texts is no record of it."""
    request = judge.request_list(queries[shown.query_id], [texts[identity] for identity in shown.ids])
    return digest({"list": [shown.query_id, *shown.ids], "request": request, "order": order})


@dataclass(frozen=True, kw_only=True)
class ChosenLists:
    """Keys that select judged lists for training.

    min_confidence: the smallest share of pairs, in percent, that both answers order alike. flag: whether to mark
    passages with signs. prompts: the prompt of a query by its text, for queries whose record states one.
    """

    keep_disagreement: bool
    min_confidence: float
    flag: bool
    prompts: Mapping[str, str]

    def keeps(self, record: ListAnnotation) -> bool:
        agreement = record["agreement"]
        if agreement is None:
            return True
        return 100 * agreement >= self.min_confidence and (self.keep_disagreement or agreement >= MANY_ALIKE)

    def line(self, record: ListAnnotation) -> str:
        """A record of lists.jsonl, with `suspicious` for passages with signs, and the query's prompt."""
        plain: dict[str, object] = {name: value for name, value in record.items() if name not in ("asked", "calls")}
        if isinstance(record["query"], str) and (prompt := self.prompts.get(record["query"])) is not None:
            plain["prompt"] = prompt
        if self.flag and (found := signs_by_place(record)):
            plain["suspicious"] = found
        return json.dumps(plain) + "\n"


def signs_by_place(record: ListAnnotation) -> dict[str, list[str]]:
    """{position: signs} of the passages that hold marks or instructions for a judge."""
    return {str(place): found for place, text in enumerate(record["passages"]) if (found := signs(text))}


@dataclass(frozen=True, kw_only=True)
class ListOutcome:
    """The results of an annotation of lists. The fields are those of `outcome.Outcome`."""

    records: Sequence[ListAnnotation]
    num_drawn: int
    num_dropped: int
    equal_grades: EqualGrades
    failures: Mapping[str, Exception]
    reason: str | None

    def write(self, folder: Path, chosen: ChosenLists, costs: Costs, logger: MetricsLogger) -> dict[str, object]:
        """Writes the files and returns the report. Raises Unfinished after an early stop or without any verdict."""
        failed, notice = failure_lines(self.failures)
        found, path = list_report(self.records), folder / "lists.jsonl"
        grades = {"count": self.equal_grades.count, "of": self.equal_grades.known, "share": self.equal_grades.share}
        suspicious = sum(bool(signs_by_place(record)) for record in self.records)
        whole = {
            **found,
            "equal_grades": grades,
            "suspicious": {"lists": suspicious, "passages_left_out": self.num_dropped},
        }
        whole |= {"failed": len(self.failures), **costs.summary()}
        if self.records or not path.exists():
            replace_text(folder / "report.json", json.dumps(whole, indent=1))
        replace_text(folder / "failed.jsonl", "".join(json.dumps(line) + "\n" for line in failed))
        if self.reason is not None:
            raise Unfinished(f"{self.reason} ({len(self.records)} of {self.num_drawn} lists are judged)")
        if not self.records:
            raise Unfinished(f"none of the {self.num_drawn} lists could be judged; {notice}")
        kept = [record for record in self.records if chosen.keeps(record)]
        replace_text(path, "".join(map(chosen.line, kept)))
        logger.table([self._row(len(kept), found, costs)], f"\n{path} written")
        if notice:
            logger.say(
                f"{len(self.failures)} of {self.num_drawn} lists have no verdict and are left out: {notice}; "
                f"{folder / 'failed.jsonl'} lists them"
            )
        return whole

    def _row(self, num_kept: int, found: Mapping[str, object], costs: Costs) -> dict[str, object]:
        row: dict[str, object] = {"lists": len(self.records), "kept": num_kept, "failed": len(self.failures)}
        row["calls"] = costs.start.calls
        row |= {name.replace("_", " "): count for name, count in costs.start.tokens.items()}
        if costs.price:
            row["dollars"] = cost(costs.start.tokens, costs.price)
        row["pairs in the same order both times"] = found["orders_agree"]
        row["pairs as in the ranking"] = found["agrees_with_ranking"]
        return row


def list_report(records: Sequence[ListAnnotation]) -> dict[str, object]:
    """Position bias and agreement. Shares are over pairs of passages of a list, or None without any.

    mean_place_of_first_shown: the mean place, from 0 (best) to 1, that a call gives the passage shown first: 0.5 is
    expected of an unbiased judge. longer_passage_preferred: among pairs of different lengths.
    """
    places = [call["ranking"].index(0) / (len(call["ranking"]) - 1) for record in records for call in record["calls"]]
    agreements = [record["agreement"] for record in records if record["agreement"] is not None]
    as_ranked: list[bool] = []
    longer: list[bool] = []
    for record in records:
        for better, worse in combinations(record["ranking"], 2):
            as_ranked.append(record["passage_ranks"][better] < record["passage_ranks"][worse])
            lengths = len(record["passages"][better]), len(record["passages"][worse])
            if lengths[0] != lengths[1]:
                longer.append(lengths[0] > lengths[1])
    return {
        "lists": len(records),
        "passages": sum(len(record["passages"]) for record in records),
        "mean_place_of_first_shown": _mean(places),
        "orders_agree": _mean(agreements),
        "agrees_with_ranking": _mean(as_ranked),
        "longer_passage_preferred": _mean(longer),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
