"""Costs of a judge's calls: a log line per call, written before its answer is used, and sums over all starts."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from rankpo.judges.base import Reply
from rankpo.judges.forms import Paid
from rankpo.judges.records import Records


@dataclass
class Spent:
    """calls: with an answer. failed: without an answer after all retries. tokens: counted by the server."""

    calls: int = 0
    failed: int = 0
    retries: int = 0
    seconds: float = 0.0
    tokens: dict[str, int] = field(default_factory=dict)

    def add(self, usage: Mapping[str, int], seconds: float, retries: int) -> None:
        self.calls += 1
        self.retries += retries
        self.seconds += seconds
        for name, count in usage.items():
            self.tokens[name] = self.tokens.get(name, 0) + count

    def summary(self, price: Mapping[str, float]) -> dict[str, object]:
        """Returns the entry of the report, with dollars by the judge's price per million tokens."""
        shown = {"calls": self.calls, "failed_calls": self.failed, "retries": self.retries}
        dollars = cost(self.tokens, price)
        return {**shown, "seconds_of_calls": round(self.seconds, 3), "tokens": self.tokens, "dollars": dollars}


class Costs:
    """Counter of costs. log: cost.jsonl in the task's folder, with a line per answered call of all starts.

    start: costs of this start. total: costs of all starts. cached: answers of this start from the cache.
    """

    def __init__(self, price: Mapping[str, float], log: Records[Paid]) -> None:
        self.price, self.log = price, log
        self.start, self.total = Spent(), Spent()
        self.cached = 0
        self._lock = threading.Lock()
        for record in log:
            self.total.add(record["usage"], record["seconds"], record["retries"])

    def add(self, prompt_hash: str, reply: Reply) -> None:
        """Adds a call. The line is on disk on return, so that no paid call is lost."""
        with self._lock:
            self.log.add(
                {
                    "call": len(self.log) + 1,
                    "prompt_hash": prompt_hash,
                    "model": reply.model,
                    "usage": dict(reply.usage),
                    "seconds": round(reply.seconds, 3),
                    "retries": reply.retries,
                    "dollars": cost(reply.usage, self.price),
                }
            )
            for spent in (self.start, self.total):
                spent.add(reply.usage, reply.seconds, reply.retries)

    def add_cached(self) -> None:
        with self._lock:
            self.cached += 1

    def add_failed(self) -> None:
        with self._lock:
            self.start.failed += 1

    @property
    def dollars(self) -> float:
        """Dollars of all starts."""
        return cost(self.total.tokens, self.price)

    def summary(self) -> dict[str, object]:
        """cost: of this start. cost_of_all_starts: sums of the log, which does not contain failed calls."""
        total = self.total.summary(self.price)
        del total["failed_calls"]
        start = {**self.start.summary(self.price), "cached_answers": self.cached}
        return {"cost": start, "cost_of_all_starts": total}


def cost(tokens: Mapping[str, int], price: Mapping[str, float]) -> float:
    """Dollars: cached prompt tokens at their own price if there is one."""
    cached = tokens.get("cached_tokens", 0) if "cached_input" in price else 0
    plain = tokens.get("prompt_tokens", 0) - cached
    total = plain * price.get("input", 0) + cached * price.get("cached_input", 0)
    return (total + tokens.get("completion_tokens", 0) * price.get("output", 0)) / 1e6
