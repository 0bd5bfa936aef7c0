"""A side of a benchmark that is quick to start in a process of its own: nothing heavy is imported here."""

from __future__ import annotations

from benchmarks.sides import Outcome, Update


def hold(megabytes: int, fail_at: int | None = None) -> Update:
    """Updates that need so much memory; number `fail_at` fails."""

    def update(step: int) -> Outcome:
        if step == fail_at:
            raise ValueError("no such update")
        return Outcome(float(len(b"x" * (megabytes * 1_000_000))))

    return update
