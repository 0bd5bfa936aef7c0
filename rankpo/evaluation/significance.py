"""Confidence intervals and paired tests over queries; items of one query are resampled together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap, ttest_rel

DRAWS = 10_000
ALL_ASSIGNMENTS_UP_TO = 14  # 2^14 sign flips are tried one by one
FLIPS = 100_000
BLOCK = 2_000


@dataclass(frozen=True)
class Comparison:
    """A new system against a baseline on the same queries. p: two-sided sign-flip permutation test; t_p: t-test, NaN for
    one query and if all differences are equal up to rounding."""

    queries: int
    difference: float
    interval: tuple[float, float]
    p: float
    t_p: float
    wins: int
    ties: int
    losses: int


def interval(values: Sequence[float] | np.ndarray, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap of the mean over queries, 95 %, [n] values (Efron and Tibshirani 1993, chapter 13)."""

    numbers = np.asarray(values, dtype=np.float64)
    if len(numbers) == 0:
        raise ValueError("an interval needs at least one value")
    if len(numbers) == 1:
        return float(numbers[0]), float(numbers[0])
    rng = np.random.default_rng(seed)
    found = bootstrap((numbers,), np.mean, n_resamples=draws, batch=BLOCK, method="percentile", rng=rng)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def sign_flip(differences: Sequence[float] | np.ndarray, flips: int = FLIPS, seed: int = 0) -> float:
    """Two-sided p-value of mean 0, [n] differences: all sign assignments up to n = 14, else random ones.

    Of random ones p = (1 + hits)/(1 + draws), never 0 (Phipson and Smyth 2010).
    """
    numbers = np.asarray(differences, dtype=np.float64)
    numbers = numbers[numbers != 0]  # Sign flips of 0 have no effect.
    if len(numbers) == 0:
        return 1.0
    observed = abs(numbers.sum())
    tolerance = 1e-12 * np.abs(numbers).sum()  # Tolerance for sums in different orders.
    if len(numbers) <= ALL_ASSIGNMENTS_UP_TO:
        bits = np.arange(2 ** len(numbers))[:, None] >> np.arange(len(numbers)) & 1
        return float((np.abs((1 - 2 * bits) @ numbers) >= observed - tolerance).mean())
    rng = np.random.default_rng(seed)
    hits = 0
    for start in range(0, flips, BLOCK):
        signs = rng.integers(0, 2, (min(BLOCK, flips - start), len(numbers)), dtype=np.int8) * 2 - 1
        hits += int((np.abs(signs @ numbers) >= observed - tolerance).sum())
    return (1 + hits) / (1 + flips)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of a family, in the given order (Holm 1979): sorted, max over j <= i of (m - j + 1)·p(j)."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    worst = 0.0
    for place, index in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = worst
    return [float(value) for value in adjusted]


def compare(new: Mapping[str, float], old: Mapping[str, float], seed: int = 0) -> Comparison:
    """Compares new minus old over common queries. Raises ValueError if there are none."""

    shared = [query for query in old if query in new]
    if not shared:
        raise ValueError("the two systems have no query in common; evaluate both on the same eval_datasets")
    a = np.array([new[query] for query in shared])
    b = np.array([old[query] for query in shared])
    differences = a - b
    varies = len(shared) > 1 and bool(np.ptp(differences) > 4 * np.finfo(float).eps * np.abs([a, b]).max())
    return Comparison(
        queries=len(shared),
        difference=float(differences.mean()),
        interval=interval(differences, seed=seed),
        p=sign_flip(differences, seed=seed),
        t_p=float(ttest_rel(a, b).pvalue) if varies else float("nan"),
        wins=int((differences > 0).sum()),
        ties=int((differences == 0).sum()),
        losses=int((differences < 0).sum()),
    )


def grouped(values: Mapping[str, Mapping[str, float]], name: str) -> dict[str, float]:
    """One value for each query: the mean over the items that share its `group`, or the item's own."""
    groups: dict[str, list[float]] = {}
    for item, record in values.items():
        if name in record:
            groups.setdefault(str(record.get("group", item)), []).append(float(record[name]))
    return {group: sum(members) / len(members) for group, members in groups.items()}
