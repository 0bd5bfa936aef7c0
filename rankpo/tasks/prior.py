"""Prior: the keys of task=prior."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rankpo.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class Prior(Task):
    """Fits a prior over model.prior_layers on preference pairs, and writes the model with it to `output`/FINAL.

    All other weights are frozen. A ranked list gives all pairs of its passages.

    weight: λ of the prior; None takes 1/a, where a is the fitted slope, so that the score is the judge's log-odds / a.
    ridges: values of the ridge penalty; cross-validation chooses one. folds: the number of folds of the passages.
    The call returns the table's row.
    """

    weight: float | None = None
    ridges: Sequence[float] = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
    folds: int = 5
    output: str = "prior"

    work: ClassVar[str] = "rankpo.tasks.work.prior"
    needs: ClassVar[frozenset[str]] = frozenset({"vectors"})
    several_processes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.weight is not None and not self.weight > 0:
            raise ValueError(f"weight must be > 0 or null, got {self.weight}")
        if not self.ridges or not all(ridge > 0 for ridge in self.ridges):
            raise ValueError(f"ridges must be numbers > 0, got {list(self.ridges)}")
        if self.folds < 2:
            raise ValueError(f"folds must be >= 2, got {self.folds}")
