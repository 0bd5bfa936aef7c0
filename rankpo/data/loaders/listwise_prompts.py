"""Loader of lists in prompt order, for listwise rerankers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from rankpo.data.loaders.ranking import DataLoader, Group
from rankpo.data.random_keys import random_keys


@dataclass(kw_only=True)
class ListwisePromptDataLoader(DataLoader):
    """One list per query and epoch, in the order of the data by default. Draws depend on (seed, epoch, id) only.

    max_candidates: of longer lists, each epoch draws this many candidates. variable_size: the fraction of lists that are
    reduced to a random size in [min_size, n] without a change of order. shuffle_candidates: the fraction of lists that
    are then shuffled. The target order is that of the labels. Lists with fewer than two candidates, or with equal labels,
    are excluded.
    """

    max_candidates: int = 20
    shuffle_candidates: float = 0.5
    variable_size: float = 0.5
    min_size: int = 2
    keep_queries_together = False

    def __post_init__(self) -> None:
        for name in ("shuffle_candidates", "variable_size"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"dataloader.{name} must be in [0, 1], got {getattr(self, name)}")
        if not 2 <= self.min_size <= self.max_candidates:
            raise ValueError(
                f"dataloader.min_size must be in 2 to max_candidates={self.max_candidates}, got {self.min_size}"
            )
        super().__post_init__()

    def make_items(self) -> np.ndarray:
        grades = np.asarray(self.table.grades)
        spread = [
            example
            for example in range(len(self.table))
            if len(slots := self.table.slots(example)) > 1 and np.ptp(grades[slots]) > 0
        ]
        return np.stack([np.array(spread, dtype=np.int64), np.full(len(spread), -1)], axis=1)

    def group(self, epoch: int, item: np.ndarray) -> Group:
        example = int(item[0])
        slots = self.table.slots(example)
        key = int(self.table.example_keys[example])
        # Five independent streams of random numbers, so that a change of one setting does not change other draws.
        chance_cut, chance_shuffle, size = (_uniform(self.seed, epoch, key, stream) for stream in (1, 2, 3))
        largest = min(len(slots), self.max_candidates)
        count = largest
        if chance_cut < self.variable_size and largest > self.min_size:
            count = self.min_size + int(size * (largest - self.min_size + 1))
        if count < len(slots):
            drawn = np.argsort(random_keys(len(slots), self.seed, epoch, key, 4), kind="stable")[:count]
            slots = slots[np.sort(drawn)]
        if chance_shuffle < self.shuffle_candidates:
            slots = slots[np.argsort(random_keys(len(slots), self.seed, epoch, key, 5), kind="stable")]
        return replace(self._make(example, slots), relevance=np.asarray(self.table.grades[slots]), grades=None)


def _uniform(*parts: int) -> float:
    """A number in [0, 1) determined by `parts`."""
    return float(random_keys(1, *parts)[0] >> np.uint64(11)) / (1 << 53)
