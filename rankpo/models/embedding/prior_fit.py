"""Fit of a passage's prior on judged pairs with a frozen model: a convex problem with about 1,000 weights.

The judge's log-odds of a pair are modelled as a·(s_w - s_l) + t_w - t_l, where s are the model's scores and t is linear in
standardised features: a Bradley-Terry model with the judge's confidence as a soft label and a ridge penalty on the weights
of t. Cross-validation over passages selects the ridge with the lowest cross-entropy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

MAX_ITERATIONS = 200
SMALLEST_DEVIATION = 1e-4  # Relative to the largest deviation of a feature; smaller deviations are rounding noise.


@dataclass(frozen=True)
class JudgedPairs:
    """P pairs of passages. chosen, rejected: [P] rows of the features. confidence: [P] in [.5, 1]. gaps: [P] s_w - s_l."""

    chosen: Tensor
    rejected: Tensor
    confidence: Tensor
    gaps: Tensor

    def __len__(self) -> int:
        return len(self.chosen)

    def select(self, rows: Tensor) -> JudgedPairs:
        return JudgedPairs(self.chosen[rows], self.rejected[rows], self.confidence[rows], self.gaps[rows])


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A fitted prior. weights: [F] of t, in the judge's log-odds. slope: a. ridge: the selected value.

    held_out_loss, held_out_accuracy: cross-entropy and agreement of a·s + t on held-out pairs in cross-validation.
    held_out_prior: agreement of t alone.
    """

    weights: Tensor
    slope: float
    ridge: float
    held_out_loss: float
    held_out_accuracy: float
    held_out_prior: float


def fit_prior(features: Tensor, pairs: JudgedPairs, ridges: Sequence[float], folds: int, seed: int) -> Fitted:
    """Fits a prior. features: [N, F] of the passages. ridges: the candidate values. folds: of the cross-validation.

    Raises ValueError if no pair has passages with different features.
    """
    features = features.double()
    deviation = features.std(0)
    kept = deviation > SMALLEST_DEVIATION * deviation.max().clamp(min=1e-12)
    if len(pairs) == 0 or not bool(kept.any()):
        raise ValueError("a prior needs judged pairs of passages with different features")
    scale = torch.where(kept, deviation, 1.0)
    standard = torch.where(kept, (features - features.mean(0)) / scale, 0.0)
    tried = sorted(ridges, reverse=True)
    measured = _cross_validated(standard, pairs, tried, folds, seed)
    best = min(range(len(tried)), key=lambda number: measured[number][0])
    solution = _path(standard, pairs, tried[: best + 1])[-1]
    loss, accuracy, alone = measured[best]
    return Fitted(
        weights=solution[1:] / scale,
        slope=float(solution[0]),
        ridge=tried[best],
        held_out_loss=loss,
        held_out_accuracy=accuracy,
        held_out_prior=alone,
    )


def _cross_validated(
    features: Tensor, pairs: JudgedPairs, ridges: Sequence[float], folds: int, seed: int
) -> list[tuple[float, float, float]]:
    """Returns cross-entropy, agreement and agreement of t alone for each ridge, on pairs with a held-out passage."""
    generator = torch.Generator().manual_seed(seed)
    fold_of = torch.randint(folds, (len(features),), generator=generator)
    sums = torch.zeros(len(ridges), 3, dtype=torch.float64)
    count = 0
    for fold in range(folds):
        out = (fold_of[pairs.chosen] == fold) | (fold_of[pairs.rejected] == fold)
        rest, held = pairs.select(torch.nonzero(~out).flatten()), pairs.select(torch.nonzero(out).flatten())
        if not len(rest) or not len(held):
            continue
        count += len(held)
        for number, solution in enumerate(_path(features, rest, ridges)):
            alone = _differences(features @ solution[1:], held.chosen, held.rejected)
            logits = solution[0] * held.gaps.double() + alone
            loss = binary_cross_entropy_with_logits(logits, held.confidence.double(), reduction="sum")
            sums[number] += torch.stack([loss, (logits > 0).double().sum(), (alone > 0).double().sum()])
    if not count:
        raise ValueError(f"{len(pairs)} pairs are too few for {folds} folds of passages; lower task.folds")
    return [(float(a), float(b), float(c)) for a, b, c in (sums / count).tolist()]


def _differences_of(features: Tensor, pairs: JudgedPairs) -> Callable[[Tensor], Tensor]:
    """Returns the function from weights [F] to t_w - t_l [P].

    It computes one product for each pair or each passage, whichever are fewer, since lists give many pairs.
    """
    rows, places = torch.unique(torch.stack([pairs.chosen, pairs.rejected]), return_inverse=True)
    if len(pairs) <= len(rows):
        gaps = features[pairs.chosen] - features[pairs.rejected]
        return lambda weights: gaps @ weights
    used = features[rows]
    return lambda weights: _differences(used @ weights, places[0], places[1])


def _differences(prior: Tensor, chosen: Tensor, rejected: Tensor) -> Tensor:
    return prior[chosen] - prior[rejected]


def _path(features: Tensor, pairs: JudgedPairs, ridges: Sequence[float]) -> list[Tensor]:
    """Returns solutions [1 + F] for decreasing ridges, each started from the previous one."""
    differences = _differences_of(features, pairs)
    solutions: list[Tensor] = []
    current = torch.zeros(1 + features.shape[1], dtype=torch.float64)
    for ridge in ridges:
        current = _minimum(differences, pairs, ridge, current)
        solutions.append(current)
    return solutions


def _minimum(differences: Callable[[Tensor], Tensor], pairs: JudgedPairs, ridge: float, start: Tensor) -> Tensor:
    """Minimises mean cross-entropy + ridge/2·|w|²; the slope a is not penalised."""
    gaps, labels = pairs.gaps.double(), pairs.confidence.double()
    solution = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [solution], max_iter=MAX_ITERATIONS, tolerance_grad=1e-7, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = solution[0] * gaps + differences(solution[1:])
        loss = binary_cross_entropy_with_logits(logits, labels) + 0.5 * ridge * solution[1:].square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call, arg-type]
    return solution.detach()
