"""Sampler of the items of each update, a function of (seed, epoch), equal on every rank."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rankpo.data.random_keys import permutation


@dataclass(frozen=True)
class Sampler:
    """Distributes `num_items` items over updates of `batch_size`, and shuffles them in every epoch.

    together: [num_items] keys; items with equal keys are adjacent (the pairs of one query, so that the query and shared
    candidates are encoded once per update). None shuffles all items independently.
    The last update of an epoch can be smaller. No item is dropped, since losses are divided by the actual counts.
    """

    num_items: int
    batch_size: int
    seed: int
    together: np.ndarray | None = None
    shuffle: bool = True

    def __post_init__(self) -> None:
        if self.num_items < 1:
            raise ValueError("the training data holds no usable example")
        if self.batch_size < 1:
            raise ValueError(f"trainer.batch_size must be >= 1, got {self.batch_size}")

    @property
    def updates_per_epoch(self) -> int:
        return -(-self.num_items // self.batch_size)

    def order(self, epoch: int) -> np.ndarray:
        """The items of an epoch in order, [num_items] int64."""
        if not self.shuffle:
            return np.arange(self.num_items)
        if self.together is None:
            return permutation(self.num_items, self.seed, epoch)
        _, group = np.unique(self.together, return_inverse=True)
        rank_of_group = np.argsort(permutation(int(group.max()) + 1, self.seed, epoch))
        within = permutation(self.num_items, self.seed, epoch, 1)
        # The last key of lexsort is the primary one: groups are in random order, and so are the items of a group.
        return np.lexsort((np.argsort(within), rank_of_group[group]))

    def update(self, step: int) -> tuple[int, np.ndarray]:
        """Returns (epoch, items) of update `step`, counted from 0 over all epochs."""
        epoch, position = divmod(step, self.updates_per_epoch)
        start = position * self.batch_size
        return epoch, self._order_of(epoch)[start : start + self.batch_size]

    def _order_of(self, epoch: int) -> np.ndarray:
        cached = self.__dict__.get("_cached")
        if cached is None or cached[0] != epoch:
            cached = (epoch, self.order(epoch))
            self.__dict__["_cached"] = cached
        return cached[1]
