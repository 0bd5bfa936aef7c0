"""Planner of updates, which distributes groups over ranks by tokens, in micro-batches of at most `max_tokens`.

Every rank computes the same plan, so no communication is needed. Every rank gets the same number of micro-batches, since
sharded strategies gather parameters in each forward pass and would hang otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def deal(costs: np.ndarray, world_size: int) -> list[np.ndarray]:
    """Item indices of each rank. The longest item goes to the rank with the fewest tokens so far (LPT, Graham 1969).

    costs: [n] tokens of each item. Every item is assigned exactly once, and equal inputs give equal plans.
    """
    if world_size == 1:
        return [np.arange(len(costs))]
    loads = np.zeros(world_size, dtype=np.int64)
    owner = np.empty(len(costs), dtype=np.int64)
    for item in np.argsort(-costs, kind="stable"):
        rank = int(loads.argmin())
        owner[item] = rank
        loads[rank] += costs[item]
    return [np.flatnonzero(owner == rank) for rank in range(world_size)]


def cut(items: np.ndarray, costs: np.ndarray, max_tokens: int) -> list[np.ndarray]:
    """Micro-batches of at most `max_tokens`, by decreasing length. A larger item is a micro-batch by itself.

    Items are sorted first, so that a forward pass has sequences of similar length.
    """
    cuts: list[list[int]] = []
    used = 0
    for item in items[np.argsort(-costs[items], kind="stable")]:
        if not cuts or used + costs[item] > max_tokens:
            cuts.append([])
            used = 0
        cuts[-1].append(int(item))
        used += int(costs[item])
    return [np.sort(np.asarray(part, dtype=np.int64)) for part in cuts]


def plan(costs: np.ndarray, world_size: int, max_tokens: int) -> list[list[np.ndarray]]:
    """Micro-batches of item indices for every rank. All ranks have the same number; some micro-batches can be empty."""
    parts = [cut(items, costs, max_tokens) for items in deal(costs, world_size)]
    return pad_equal(parts)


def pad_equal(parts: Sequence[list[np.ndarray]]) -> list[list[np.ndarray]]:
    """Appends empty micro-batches until all ranks have the same number."""
    most = max(len(part) for part in parts)
    empty = np.empty(0, dtype=np.int64)
    return [[*part, *([empty] * (most - len(part)))] for part in parts]
