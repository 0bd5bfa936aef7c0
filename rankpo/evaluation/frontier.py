"""Pareto frontier of alignment and retention, and choice of the most aligned candidate above a floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


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


def undominated(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Returns the Pareto-optimal candidates by agreement and kept quality, in descending order of agreement.

    Only the first of equal candidates is returned.
    """
    best: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda one: (-one.agreement, -one.kept)):
        if not best or candidate.kept > best[-1].kept:
            best.append(candidate)
    return best


def most_aligned(candidates: Sequence[Candidate], floor: float) -> Candidate | None:
    """Returns the candidate with the highest agreement among those with kept >= floor; ties by the largest kept.

    Returns None if no candidate reaches the floor.
    """
    enough = [candidate for candidate in candidates if candidate.kept >= floor]
    return max(enough, key=lambda one: (one.agreement, one.kept), default=None)
