"""Points of alignment and retention: which ones no other beats, and the most aligned one that keeps enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model between a start model and a trained one, as measured on the collections for choosing.

    source: the trained model, "start" for the start model. prior: where its prior comes from, "" without one.
    alphas: weight of the trained model, one for each group of layers. prior_weight: λ, 0 without a prior.
    kept: share of the start model's quality. agreement: with the judge. metrics: all that was measured.
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
    """The candidates that no other beats in one direction without losing in the other, by falling agreement.

    Of equal ones, the first stays.
    """
    best: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda one: (-one.agreement, -one.kept)):
        if not best or candidate.kept > best[-1].kept:
            best.append(candidate)
    return best


def most_aligned(candidates: Sequence[Candidate], floor: float) -> Candidate | None:
    """The candidate of highest agreement among those that keep at least `floor`; of equals the one that keeps most.

    Returns None where no candidate keeps as much.
    """
    enough = [candidate for candidate in candidates if candidate.kept >= floor]
    return max(enough, key=lambda one: (one.agreement, one.kept), default=None)
