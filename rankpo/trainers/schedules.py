"""Learning-rate schedules as pure functions of the update, without state to save or to step twice."""

from __future__ import annotations

import math
from dataclasses import dataclass

KINDS = ("constant", "linear", "cosine", "warmup_stable_decay")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up, then decay by `kind` to `final` times the full rate, which is reached one update after the last.

    No update has a rate of 0, including the first of the warm-up and the last of the run.

    warmup, decay: updates if >= 1, else a fraction of the run. decay is the last part of warmup_stable_decay.
    """

    kind: str = "cosine"
    warmup: float = 0.1
    decay: float = 0.2
    final: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        for name in ("warmup", "decay", "final"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be >= 0 and finite, got {getattr(self, name)}")

    def check(self, total: int) -> None:
        """Raises ValueError if warm-up and decay exceed a run of `total` updates, where the rate would jump."""
        if self.kind != "warmup_stable_decay":
            return
        warmup, decay = (value if value >= 1 else value * total for value in (self.warmup, self.decay))
        if warmup + decay > total * (1 + 1e-9):  # The tolerance covers the rounding of fractions.
            raise ValueError(
                f"scheduler.warmup={self.warmup:g} and scheduler.decay={self.decay:g} take {warmup + decay:g} updates, "
                f"but the run has {total}; lower them, or raise trainer.epochs or trainer.max_steps"
            )

    def remark(self, total: int) -> str | None:
        """Returns a line about unusual rates in a run of `total` updates, or None."""
        if _updates(self.warmup, total) < total or self.warmup < 1:
            return None
        return (
            f"scheduler.warmup={self.warmup:g} updates covers this whole run of {total}, so the learning rate never reaches "
            "optimizer.lr. A value below 1 is a fraction of the run"
        )

    def factor(self, step: int, total: int) -> float:
        """Share of the full learning rate in update `step` (from 0) of `total`; 1 at the first after the warm-up."""
        warmup = _updates(self.warmup, total)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        remaining = (step - warmup) / max(1, total - warmup)  # 0 … just below 1
        if self.kind == "linear":
            return self.final + (1 - self.final) * (1 - remaining)
        if self.kind == "cosine":
            return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * remaining))
        if self.kind == "warmup_stable_decay":
            decay = max(1, _updates(self.decay, total))
            return self.final + (1 - self.final) * min(1.0, (total - step) / decay)
        return 1.0


def _updates(value: float, total: int) -> int:
    return int(value) if value >= 1 else math.ceil(value * total)
