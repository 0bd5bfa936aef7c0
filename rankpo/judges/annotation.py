"""Annotation of pairs by a judge. Every answer is written to disk before it is used, so that a kill loses none."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from rankpo.judges.base import Judge, JudgeFailed, JudgeStopped
from rankpo.judges.costs import Costs
from rankpo.judges.forms import Annotation, Answer, Call
from rankpo.judges.pairs import Pair
from rankpo.judges.records import Records, digest
from rankpo.judges.verdicts import Preference, Unparsable, Unreadable, Verdict, combine, parse
from rankpo.types import Prompt

ORDERS = ("both", "random", "given")
SHOWN_CHARACTERS = 120  # Shown end of an answer without a preference.
FAILED_IN_A_ROW = 10  # Consecutive failures, besides the concurrent calls, after which the annotation stops.


@dataclass(kw_only=True)
class Annotator:
    """Asks a judge about pairs. order: `both` asks twice, in both orders; `random` and `given` ask once.

    answers: the cache by prompt, shared by runs. max_calls: the limit of calls of this start. max_cost: the limit of
    dollars of all starts. max_reasks: the number of further calls after an answer without a preference.
    """

    judge: Judge
    answers: Records[Answer]
    costs: Costs
    texts: Mapping[str, str]
    queries: Mapping[str, Prompt]
    order: str = "both"
    max_reasks: int = 1
    max_calls: int | None = None
    max_cost: float | None = None
    _asked: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(
        self,
        pairs: Sequence[tuple[int, Pair, bool]],
        done: Callable[[int, Annotation], None],
        failed: Callable[[int, JudgeFailed | Unparsable], None],
    ) -> str | None:
        """Judges pairs (number, pair, whether `random` exchanges them) concurrently, in order.

        done: receives each record. failed: receives the error of each pair without a verdict. Returns the reason for an
        early stop, or None.
        """
        waiting = iter(pairs)
        reason: str | None = None
        patience = max(FAILED_IN_A_ROW, 2 * self.judge.concurrency)
        in_a_row = 0
        with ThreadPoolExecutor(max_workers=self.judge.concurrency) as pool:
            running: dict[Future[Annotation], int] = {}
            while True:
                while reason is None and len(running) < self.judge.concurrency:
                    item = next(waiting, None)
                    if item is None:
                        break
                    running[pool.submit(self.annotate, item[1], item[2])] = item[0]
                if not running:
                    return reason
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    number = running.pop(future)
                    try:
                        done(number, future.result())
                        in_a_row = 0
                    except (JudgeFailed, Unparsable) as error:
                        failed(number, error)
                        in_a_row = in_a_row + 1 if isinstance(error, JudgeFailed) else 0
                        if in_a_row >= patience and reason is None:
                            reason = f"{in_a_row} consecutive pairs had no answer, the last because of: {error}; run the same command to continue"
                    except JudgeStopped as error:
                        reason = str(error)

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
        request = dict(self.judge.request(query, a, b))
        for attempt in range(self.max_reasks + 1):
            key = digest({"request": request, "attempt": attempt} if attempt else request)
            record = self._answer(key, request)
            try:
                verdict = parse(record["text"])
            except Unparsable as error:
                if attempt == self.max_reasks:
                    raise Unparsable(f"{error}; the answer ends with {record['text'][-SHOWN_CHARACTERS:]!r}") from error
                continue
            calls.append(
                {
                    "order": order,
                    "preferred": verdict.choice,
                    "confidence": verdict.confidence,
                    "text": record["text"],
                    "model": record["model"],
                    "prompt_hash": key,
                }
            )
            return verdict
        raise AssertionError("the last attempt returns or raises")

    def _answer(self, key: str, request: Mapping[str, object]) -> Answer:
        """Returns the cached answer, or a new one; only one of several concurrent annotators asks for it."""
        record = self.answers.get(key)
        if record is None:
            with self.answers.claimed(key):
                record = self.answers.fresh(key)
                if record is None:
                    return self._ask(key, request)
        self.costs.add_cached()
        return record

    def _ask(self, key: str, request: Mapping[str, object]) -> Answer:
        self._spend()
        try:
            reply = self.judge.ask(request)
        except JudgeFailed:
            self.costs.add_failed()
            raise
        self.costs.add(key, reply)
        try:
            parse(reply.text)
        except Unreadable as error:  # A stored answer would fail again in every later start.
            raise JudgeFailed(f"{error}; the answer is not stored") from error
        except Unparsable:
            pass  # An answer without a preference is stored, since another attempt has a different key.
        record: Answer = {
            "prompt_hash": key,
            "text": reply.text,
            "model": reply.model,
            "usage": dict(reply.usage),
            "seconds": round(reply.seconds, 3),
            "retries": reply.retries,
        }
        self.answers.add(record)
        return record

    def _spend(self) -> None:
        """Counts a call before it is made. Raises JudgeStopped if the budget is exhausted."""
        with self._lock:
            if self.max_calls is not None and self._asked >= self.max_calls:
                raise JudgeStopped(f"task.max_calls={self.max_calls} calls were made; run the same command to continue")
            if self.max_cost is not None and self.costs.dollars >= self.max_cost:
                raise JudgeStopped(
                    f"task.max_cost={self.max_cost} dollars are spent; raise task.max_cost and run the same command to continue"
                )
            self._asked += 1


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


def answers_file(cache_dir: Path, judge: Judge) -> Path:
    """Returns the file with a judge's answers, for all runs with the same cache directory."""
    name = re.sub(r"[^\w.-]+", "_", judge.name)[-80:]
    return Path(cache_dir) / "judge" / f"{name}.jsonl"
