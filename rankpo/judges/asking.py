"""Asking of a judge: concurrent calls with a cache and budgets. Every answer is on disk before it is used."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, TypeVar

from rankpo.judges.base import Judge, JudgeFailed, JudgeStopped
from rankpo.judges.costs import Costs
from rankpo.judges.forms import Answer
from rankpo.judges.records import Records, digest
from rankpo.judges.verdicts import Unparsable, Unreadable

ORDERS = ("both", "random", "given")
SHOWN_CHARACTERS = 120  # Shown end of an answer without a verdict.
FAILED_IN_A_ROW = 10  # Consecutive failures, besides the concurrent calls, after which the annotation stops.

ItemT = TypeVar("ItemT")
RecordT = TypeVar("RecordT")
VerdictT = TypeVar("VerdictT")


@dataclass(kw_only=True)
class Asking:
    """Asks a judge.

    answers: the cache by prompt, shared by runs. max_calls: the limit of calls of this start. max_cost: the limit of
    dollars of all starts. max_reasks: the number of further calls after an answer without a verdict.
    """

    judge: Judge
    answers: Records[Answer]
    costs: Costs
    max_reasks: int = 1
    max_calls: int | None = None
    max_cost: float | None = None
    _asked: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    items: ClassVar[str] = "items"  # What is judged, in messages.

    def run_all(
        self,
        items: Sequence[tuple[int, ItemT]],
        work: Callable[[ItemT], RecordT],
        done: Callable[[int, RecordT], None],
        failed: Callable[[int, JudgeFailed | Unparsable], None],
    ) -> str | None:
        """Calls `work` for items with their numbers, concurrently and in order.

        done: receives each record. failed: receives the error of each item without a verdict. Returns the reason for an
        early stop, or None.
        """
        waiting = iter(items)
        reason: str | None = None
        patience = max(FAILED_IN_A_ROW, 2 * self.judge.concurrency)
        in_a_row = 0
        with ThreadPoolExecutor(max_workers=self.judge.concurrency) as pool:
            running: dict[Future[RecordT], int] = {}
            while True:
                while reason is None and len(running) < self.judge.concurrency:
                    item = next(waiting, None)
                    if item is None:
                        break
                    running[pool.submit(work, item[1])] = item[0]
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
                            reason = f"{in_a_row} consecutive {self.items} had no answer, the last because of: {error}; run the same command to continue"
                    except JudgeStopped as error:
                        reason = str(error)

    def verdict(self, request: Mapping[str, object], parse: Callable[[str], VerdictT]) -> tuple[VerdictT, Answer]:
        """Returns the parsed answer of a request, and the answer. Raises Unparsable after the last attempt."""
        for attempt in range(self.max_reasks + 1):
            key = digest({"request": request, "attempt": attempt} if attempt else request)
            record = self._answer(key, request, parse)
            try:
                return parse(record["text"]), record
            except Unparsable as error:
                if attempt == self.max_reasks:
                    raise Unparsable(f"{error}; the answer ends with {record['text'][-SHOWN_CHARACTERS:]!r}") from error
        raise AssertionError("the last attempt returns or raises")

    def _answer(self, key: str, request: Mapping[str, object], parse: Callable[[str], object]) -> Answer:
        """Returns the cached answer, or a new one; only one of several concurrent annotators asks for it."""
        record = self.answers.get(key)
        if record is None:
            with self.answers.claimed(key):
                record = self.answers.fresh(key)
                if record is None:
                    return self._ask(key, request, parse)
        self.costs.add_cached()
        return record

    def _ask(self, key: str, request: Mapping[str, object], parse: Callable[[str], object]) -> Answer:
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
            pass  # An answer without a verdict is stored, since another attempt has a different key.
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


def answers_file(cache_dir: Path, judge: Judge) -> Path:
    """Returns the file with a judge's answers, for all runs with the same cache directory."""
    name = re.sub(r"[^\w.-]+", "_", judge.name)[-80:]
    return Path(cache_dir) / "judge" / f"{name}.jsonl"
