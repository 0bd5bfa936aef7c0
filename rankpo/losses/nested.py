"""NestedInBatchLoss: the base of in-batch losses that support several embedding sizes."""

from __future__ import annotations

from dataclasses import dataclass

from rankpo.losses.in_batch import InBatchLoss
from rankpo.losses.matryoshka import Matryoshka, matryoshka_of


@dataclass(frozen=True, kw_only=True)
class NestedInBatchLoss(InBatchLoss):
    """matryoshka_dims, matryoshka_weights: see `Matryoshka`; `in_batch` returns the mean over the sizes."""

    matryoshka_dims: tuple[int, ...] | None = None
    matryoshka_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        _ = self.matryoshka

    @property
    def matryoshka(self) -> Matryoshka | None:
        return matryoshka_of(self.matryoshka_dims, self.matryoshka_weights)
