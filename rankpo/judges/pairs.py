"""Pairs of passages of a ranking for a judge, drawn from (seed, query id)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

import numpy as np

from rankpo.data.random_keys import random_keys, text_key

STRATEGIES = ("uniform", "adjacent", "gap", "top_vs_rest", "uncertain")


ItemT = TypeVar("ItemT")


@dataclass(frozen=True)
class Pair:
    """Two passages of one query. rank1, rank2: ranks in the ranking, from 1."""

    query_id: str
    id1: str
    id2: str
    rank1: int
    rank2: int


@dataclass(frozen=True, kw_only=True)
class PairSettings:
    """top_k: ranks that take part. per_query: pairs of each query.

    strategy: `uniform`, any two (as in RankPO's data); `adjacent`, neighbours in the ranking; `gap`, ranks that
    differ by gap_min to gap_max; `top_vs_rest`, the first against another; `uncertain`, the smallest score gaps.
    """

    top_k: int = 100
    per_query: int = 6
    strategy: str = "uniform"
    gap_min: int = 1
    gap_max: int = 100

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, got {self.strategy!r}")
        if self.top_k < 2:
            raise ValueError(f"top_k must be >= 2, got {self.top_k}")
        if self.per_query < 1:
            raise ValueError(f"per_query must be >= 1, got {self.per_query}")
        if not 1 <= self.gap_min <= self.gap_max:
            raise ValueError(f"gap_min must be in 1 to gap_max={self.gap_max}, got {self.gap_min}")


def draw(
    settings: PairSettings,
    query_id: str,
    ranking: Sequence[str],
    scores: Sequence[float],
    seed: int,
    equal: Collection[tuple[str, str]] = (),
) -> list[Pair]:
    """Up to per_query pairs of a ranking (ids, best first), in a random order of passages.

    equal: pairs of ids, in either order, to exclude.
    """
    depth = min(settings.top_k, len(ranking))
    left = {frozenset(pair) for pair in equal}
    pairs = [pair for pair in _allowed(settings, depth) if frozenset((ranking[pair[0]], ranking[pair[1]])) not in left]
    keys = random_keys(2 * max(1, len(pairs)), seed, text_key(query_id))
    order = np.argsort(keys[: len(pairs)], kind="stable").tolist()
    if settings.strategy == "uncertain":
        order.sort(key=lambda number: abs(scores[pairs[number][0]] - scores[pairs[number][1]]))
    drawn = []
    for number in order[: settings.per_query]:
        first, second = pairs[number]
        if keys[len(pairs) + number] % np.uint64(
            2
        ):  # The better ranked passage is on either side with equal probability.
            first, second = second, first
        drawn.append(Pair(query_id, ranking[first], ranking[second], first + 1, second + 1))
    return drawn


def in_rounds(drawn: Sequence[Sequence[ItemT]]) -> list[ItemT]:
    """The first pair (or list) of every query, then the second of every query, and so on.

    With this order, a budget that ends early covers as many queries and passages as possible.
    """
    longest = max(map(len, drawn), default=0)
    return [items[number] for number in range(longest) for items in drawn if number < len(items)]


def _allowed(settings: PairSettings, depth: int) -> list[tuple[int, int]]:
    if settings.strategy == "adjacent":
        return [(rank, rank + 1) for rank in range(depth - 1)]
    if settings.strategy == "top_vs_rest":
        return [(0, rank) for rank in range(1, depth)]
    pairs = combinations(range(depth), 2)
    if settings.strategy == "gap":
        return [(a, b) for a, b in pairs if settings.gap_min <= b - a <= settings.gap_max]
    return list(pairs)
