"""Annotation of pairs by a judge, in one order or in both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rankpo.judges.asking import Asking
from rankpo.judges.base import Judge, JudgeFailed
from rankpo.judges.forms import Annotation, Call
from rankpo.judges.pairs import Pair
from rankpo.judges.records import digest
from rankpo.judges.verdicts import Preference, Unparsable, Verdict, combine, parse
from rankpo.types import Prompt


@dataclass(kw_only=True)
class Annotator(Asking):
    """Asks a judge about pairs. order: `both` asks twice, in both orders; `random` and `given` ask once."""

    texts: Mapping[str, str]
    queries: Mapping[str, Prompt]
    order: str = "both"

    items: ClassVar[str] = "pairs"

    def run(
        self,
        pairs: Sequence[tuple[int, Pair, bool]],
        done: Callable[[int, Annotation], None],
        failed: Callable[[int, JudgeFailed | Unparsable], None],
    ) -> str | None:
        """Judges pairs (number, pair, whether `random` exchanges them) as `run_all`."""
        items = [(number, (pair, exchanged)) for number, pair, exchanged in pairs]
        return self.run_all(items, lambda item: self.annotate(*item), done, failed)

    def annotate(self, pair: Pair, exchanged: bool = False) -> Annotation:
        """One pair's record in RankPO's keys with p, the order and the calls behind it."""
        query, first, second = self.queries[pair.query_id], self.texts[pair.id1], self.texts[pair.id2]
        given = swapped = None
        calls: list[Call] = []
        if self.order == "both" or not exchanged:
            given = self._verdict(query, first, second, calls, "given")
        if self.order == "both" or exchanged:
            swapped = self._verdict(query, second, first, calls, "swapped")
        preference: Preference = combine(given, swapped)
        return {
            "query_id": pair.query_id,
            "passage_id1": pair.id1,
            "passage_id2": pair.id2,
            "query": query,
            "passage1": first,
            "passage2": second,
            "preferred": preference.preferred,
            "confidence_score": preference.confidence,
            "comparison": calls[0]["text"],
            "passage_rank1": pair.rank1,
            "passage_rank2": pair.rank2,
            "p": preference.p,
            "agree": preference.agree,
            "order": self.order,
            "model": calls[0]["model"],
            "calls": calls,
        }

    def _verdict(self, query: Prompt, a: str, b: str, calls: list[Call], order: str) -> Verdict:
        verdict, record = self.verdict(dict(self.judge.request(query, a, b)), parse)
        calls.append(
            {
                "order": order,
                "preferred": verdict.choice,
                "confidence": verdict.confidence,
                "text": record["text"],
                "model": record["model"],
                "prompt_hash": record["prompt_hash"],
            }
        )
        return verdict


def asked(judge: Judge, pair: Pair, queries: Mapping[str, Prompt], texts: Mapping[str, str], order: str) -> str:
    """What a pair's record answers: one of another judge, of other words or of other texts is no record of it."""
    request = judge.request(queries[pair.query_id], texts[pair.id1], texts[pair.id2])
    return digest({"pair": [pair.query_id, pair.id1, pair.id2], "request": request, "order": order})


def equal_texts(texts: Mapping[str, str], ids: Sequence[str], key: Callable[[str], bytes]) -> set[tuple[str, str]]:
    """Returns pairs of ids with equal texts, which are not annotated."""
    groups: dict[bytes, list[str]] = {}
    for identity in ids:
        groups.setdefault(key(texts[identity]), []).append(identity)
    several = (group for group in groups.values() if len(group) > 1)
    return {(a, b) for group in several for n, a in enumerate(group) for b in group[n + 1 :]}
