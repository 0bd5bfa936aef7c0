"""Pairs in, preferences out: every answer is on the disk before it counts, so that a kill loses nothing paid for."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankpo.judges.base import Judge, JudgeFailed, JudgeStopped, Reply
from rankpo.judges.pairs import Pair
from rankpo.judges.records import Records, digest
from rankpo.judges.verdicts import Preference, Unparsable, Verdict, combine, parse
from rankpo.types import Prompt

ORDERS = ("both", "random", "given")


@dataclass
class Costs:
    """What the calls of one task used; cached answers cost nothing. dollars by the judge's price per million tokens."""

    price: Mapping[str, float]
    calls: int = 0
    cached: int = 0
    retries: int = 0
    seconds: float = 0.0
    tokens: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, reply: Reply) -> None:
        with self.lock:
            self.calls += 1
            self.retries += reply.retries
            self.seconds += reply.seconds
            for name, count in reply.usage.items():
                self.tokens[name] = self.tokens.get(name, 0) + count

    @property
    def dollars(self) -> float:
        return cost(self.tokens, self.price)

    def summary(self) -> dict[str, Any]:
        shown = {"calls": self.calls, "cached_answers": self.cached, "retries": self.retries}
        return {**shown, "seconds_of_calls": round(self.seconds, 3), "tokens": self.tokens, "dollars": self.dollars}


def cost(tokens: Mapping[str, int], price: Mapping[str, float]) -> float:
    """Dollars: cached prompt tokens at their own price if there is one."""
    cached = tokens.get("cached_tokens", 0) if "cached_input" in price else 0
    plain = tokens.get("prompt_tokens", 0) - cached
    total = plain * price.get("input", 0) + cached * price.get("cached_input", 0)
    return (total + tokens.get("completion_tokens", 0) * price.get("output", 0)) / 1e6


@dataclass(kw_only=True)
class Annotator:
    """Asks a judge about pairs. order: `both` asks twice, the passages exchanged; `random` and `given` once.

    answers: the cache by prompt, shared by runs. max_calls, max_cost (dollars): no further call is made beyond them.
    max_reasks: how often a judge is asked once more for words that name no preference.
    """

    judge: Judge
    answers: Records
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
        done: Callable[[int, dict[str, Any]], None],
        failed: Callable[[int, Pair, str], None],
    ) -> str | None:
        """Judges the pairs (number, pair, whether `random` exchanges them), several at once, in their order.

        done: gets each record; failed: each pair without a verdict. Returns why it stopped early, or None.
        """
        waiting = iter(pairs)
        reason: str | None = None
        with ThreadPoolExecutor(max_workers=self.judge.concurrency) as pool:
            running: dict[Any, tuple[int, Pair]] = {}
            while True:
                while reason is None and len(running) < self.judge.concurrency:
                    item = next(waiting, None)
                    if item is None:
                        break
                    running[pool.submit(self.annotate, item[1], item[2])] = item[:2]
                if not running:
                    return reason
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    number, pair = running.pop(future)
                    try:
                        done(number, future.result())
                    except (JudgeFailed, Unparsable) as error:
                        failed(number, pair, str(error))
                    except JudgeStopped as error:
                        reason = str(error)

    def annotate(self, pair: Pair, exchanged: bool = False) -> dict[str, Any]:
        """One pair's record in RankPO's keys (interop.md 1.2) with p, the order and the calls behind it."""
        query, first, second = self.queries[pair.query_id], self.texts[pair.id1], self.texts[pair.id2]
        given = swapped = None
        calls: list[dict[str, Any]] = []
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

    def _verdict(self, query: Prompt, a: str, b: str, calls: list[dict[str, Any]], order: str) -> Verdict:
        request = dict(self.judge.request(query, a, b))
        for attempt in range(self.max_reasks + 1):
            key = digest({"request": request, "attempt": attempt} if attempt else request)
            record = self.answers.get(key)
            if record is None:
                record = self._ask(key, request)
            else:
                with self.costs.lock:
                    self.costs.cached += 1
            try:
                verdict = parse(record["text"])
            except Unparsable:
                if attempt == self.max_reasks:
                    raise
                continue
            shown = {"preferred": verdict.choice, "confidence": verdict.confidence, "text": record["text"]}
            calls.append({"order": order, **shown, "model": record["model"], "prompt_hash": key})
            return verdict
        raise AssertionError("the last attempt returns or raises")

    def _ask(self, key: str, request: Mapping[str, Any]) -> dict[str, Any]:
        self._spend()
        reply = self.judge.ask(request)
        record = {"prompt_hash": key, "text": reply.text, "model": reply.model, "usage": dict(reply.usage)}
        self.answers.add({**record, "seconds": round(reply.seconds, 3), "retries": reply.retries})
        self.costs.add(reply)
        return record

    def _spend(self) -> None:
        """Counts a call before it is made. Raises JudgeStopped where the budget does not allow it."""
        with self._lock:
            if self.max_calls is not None and self._asked >= self.max_calls:
                raise JudgeStopped(f"task.max_calls={self.max_calls} calls were made; start again to go on")
            if self.max_cost is not None and self.costs.dollars >= self.max_cost:
                raise JudgeStopped(f"task.max_cost={self.max_cost} is spent; start again with more to go on")
            self._asked += 1


def equal_texts(texts: Mapping[str, str], ids: Sequence[str], key: Callable[[str], bytes]) -> set[tuple[str, str]]:
    """Pairs of ids among `ids` whose texts are equal: nobody can prefer one of them."""
    groups: dict[bytes, list[str]] = {}
    for identity in ids:
        groups.setdefault(key(texts[identity]), []).append(identity)
    several = (group for group in groups.values() if len(group) > 1)
    return {(a, b) for group in several for n, a in enumerate(group) for b in group[n + 1 :]}


def answers_file(cache_dir: Path, judge: Judge) -> Path:
    """Where the answers of a judge are kept, for all runs that share the cache directory."""
    name = re.sub(r"[^\w.-]+", "_", judge.name)[-80:]
    return Path(cache_dir) / "judge" / f"{name}.jsonl"
