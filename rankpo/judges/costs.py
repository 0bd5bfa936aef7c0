"""Costs of a judge's calls: a log line per call, written before its answer counts, and sums over all starts."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from rankpo.judges.base import Reply
from rankpo.judges.forms import Paid
from rankpo.judges.records import Records


@dataclass
class Spent:
    """calls: that were answered. failed: without an answer after their retries. tokens: as the server counts them."""

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
        """As the report has it; dollars by the judge's price per million tokens."""
        shown = {"calls": self.calls, "failed_calls": self.failed, "retries": self.retries}
        dollars = cost(self.tokens, price)
        return {**shown, "seconds_of_calls": round(self.seconds, 3), "tokens": self.tokens, "dollars": dollars}


class Costs:
    """log: cost.jsonl of the task's folder, a line for each answered call; earlier starts' lines are read from it.

    start: of this start; total: of all of them. cached: answers of this start that cost nothing.
    """

    def __init__(self, price: Mapping[str, float], log: Records[Paid]) -> None:
        self.price, self.log = price, log
        self.start, self.total = Spent(), Spent()
        self.cached = 0
        self._lock = threading.Lock()
        for record in log:
            self.total.add(record["usage"], record["seconds"], record["retries"])

    def add(self, prompt_hash: str, reply: Reply) -> None:
        """Returns once the line is on the disk: a call that is paid for is in the log, whatever happens next."""
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
        """Of all starts."""
        return cost(self.total.tokens, self.price)

    def summary(self) -> dict[str, object]:
        """cost: of this start; cost_of_all_starts: the log's sums, which know nothing of failed calls."""
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
