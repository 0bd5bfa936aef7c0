"""Turns: the order in which updates are drawn from several datasets, a function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from rankpo.data.random_keys import permutation, random_keys


@dataclass(frozen=True)
class Turns:
    """The dataset of each update. updates: for each dataset, the number of updates of its own epoch, >= 1."""

    updates: tuple[int, ...]
    order: str
    temperature: float
    seed: int

    @property
    def per_epoch(self) -> int:
        return sum(self.shares)

    @property
    def shares(self) -> tuple[int, ...]:
        """The updates of each dataset in an epoch, equal in all epochs."""
        return _shares(self.updates, self.order, self.temperature)

    def update(self, step: int) -> tuple[int, int]:
        """Returns, for update `step` counted from 0, its dataset and its number among the updates of that dataset."""
        epoch, position = divmod(step, self.per_epoch)
        datasets, earlier = _epoch(self, epoch)
        dataset = int(datasets[position])
        return dataset, epoch * self.shares[dataset] + int(earlier[position])


@lru_cache(maxsize=64)
def _shares(updates: tuple[int, ...], order: str, temperature: float) -> tuple[int, ...]:
    total = sum(updates)
    if order == "round_robin":
        return (-(-total // len(updates)),) * len(updates)
    if order != "temperature":
        return updates
    weights = np.array(updates, dtype=np.float64) ** temperature
    exact = weights / weights.sum() * total
    whole = np.maximum(np.floor(exact).astype(np.int64), 1)
    for number in np.argsort(whole - exact, kind="stable")[: max(0, total - int(whole.sum()))]:
        whole[number] += 1  # The largest remainders.
    return tuple(whole.tolist())


@lru_cache(maxsize=4)
def _epoch(turns: Turns, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """The dataset of each update of an epoch, [n], and the number of earlier updates of that dataset in it, [n]."""
    shares = turns.shares
    if turns.order == "round_robin":
        keys = random_keys(shares[0] * len(shares), turns.seed, epoch).reshape(shares[0], len(shares))
        datasets = keys.argsort(axis=1, kind="stable").reshape(-1)  # Each row is a round.
    elif turns.order == "proportional":
        datasets = _spread(shares, permutation(len(shares), turns.seed, epoch))
    else:
        blocks = np.repeat(np.arange(len(shares)), shares)
        datasets = blocks[permutation(len(blocks), turns.seed, epoch)]
    earlier = np.zeros(len(datasets), dtype=np.int64)
    for number, count in enumerate(shares):
        earlier[datasets == number] = np.arange(count)
    return datasets, earlier


def _spread(shares: Sequence[int], ties: np.ndarray) -> np.ndarray:
    """Datasets [n], where update k of a dataset's m is at (k + 1/2) / m of the epoch; `ties` orders equal positions."""
    places = np.concatenate([(np.arange(count) + 0.5) / count for count in shares])
    datasets = np.repeat(np.arange(len(shares)), shares)
    rank = np.argsort(ties)
    return datasets[np.lexsort((rank[datasets], places))]
