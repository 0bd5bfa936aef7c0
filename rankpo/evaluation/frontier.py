"""Pareto frontier of alignment and retention, and choice of the most aligned candidate above a floor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An interpolation of a start model and a trained model, with metrics for model selection.

    source: the trained model, or "start". prior: the source of its prior, "" without one. alphas: weights of the
    trained model, one for each group of layers. prior_weight: λ, 0 without a prior. kept: quality as a fraction of the
    start model's. agreement: with the judge. metrics: all measured metrics.
    """

    source: str
    prior: str = ""
    alphas: tuple[float, ...] = (0.0,)
    prior_weight: float = 0.0
    kept: float
    agreement: float
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The candidate in a few words."""
        moved = any(alpha > 0 for alpha in self.alphas)
        parts = [self.source if moved else "start"]
        if moved and set(self.alphas) != {1.0}:
            parts.append(f"α {'/'.join(f'{alpha:g}' for alpha in self.alphas)}")
        if self.prior_weight:
            parts.append(f"λ {self.prior_weight:.3g}{'' if self.prior in ('', self.source) else f' of {self.prior}'}")
        return ", ".join(parts)


def pareto_optimal(items: Sequence[Item], place: Callable[[Item], tuple[float, float]]) -> list[Item]:
    """Returns the items that no other one beats in both values of `place`, in descending order of the second value.

    Only the first of equal items is returned.
    """
    best: list[Item] = []
    for item in sorted(items, key=lambda one: (-place(one)[1], -place(one)[0])):
        if not best or place(item)[0] > place(best[-1])[0]:
            best.append(item)
    return best


def undominated(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Returns the Pareto-optimal candidates by agreement and kept quality, in descending order of agreement."""
    return pareto_optimal(candidates, lambda one: (one.kept, one.agreement))


def most_aligned(candidates: Sequence[Candidate], floor: float) -> Candidate | None:
    """Returns the candidate with the highest agreement among those with kept >= floor; ties by the largest kept.

    Returns None if no candidate reaches the floor.
    """
    enough = [candidate for candidate in candidates if candidate.kept >= floor]
    return max(enough, key=lambda one: (one.agreement, one.kept), default=None)
