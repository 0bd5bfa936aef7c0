"""Loader of unpaired preferences: groups of one desirable or undesirable candidate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rankpo.data.loaders.ranking import DataLoader, Group
from rankpo.data.random_keys import permutation


@dataclass(kw_only=True)
class UnpairedPreferenceDataLoader(DataLoader):
    """Every candidate for itself, desirable where the data says that it is relevant. A pair gives one unit of each kind.

    desirable_fraction, undesirable_fraction: of each kind, the share in (0, 1] that is used, drawn once by the seed.
    rewards: `label`, a unit's relevance is 1 or 0; `score`, it is the data's own number (loss=ppo), and scores without
    a threshold are allowed as long as all of them are used.
    """

    desirable_fraction: float = 1.0
    undesirable_fraction: float = 1.0
    rewards: str = "label"

    def __post_init__(self) -> None:
        for name in ("desirable_fraction", "undesirable_fraction"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"dataloader.{name} must be in (0, 1], got {getattr(self, name)}")
        if self.rewards not in ("label", "score"):
            raise ValueError(f"dataloader.rewards must be one of label, score, got {self.rewards!r}")
        super().__post_init__()

    def make_items(self) -> np.ndarray:
        table = self.table
        examples = np.repeat(np.arange(len(table)), np.diff(table.offsets))
        if self.rewards == "score" and self.desirable_fraction == self.undesirable_fraction == 1:
            return np.stack([examples, np.arange(len(examples))], axis=1)
        desirable = self._relevant = table.relevant("a loss on desirable and undesirable completions")
        kept = [
            _share(np.flatnonzero(kind), fraction, self.seed, number)
            for number, (kind, fraction) in enumerate(
                ((desirable, self.desirable_fraction), (~desirable, self.undesirable_fraction))
            )
        ]
        slots = np.sort(np.concatenate(kept))
        return np.stack([examples[slots], slots], axis=1)

    def counts(self) -> tuple[int, int]:
        """How many desirable and undesirable units an epoch has."""
        desirable = int(self._relevant[self.items[:, 1]].sum())
        return desirable, len(self.items) - desirable

    def first_update_of_one_prompt(self, num_updates: int) -> int | None:
        """The first of so many updates all of whose units have the same prompt, counted from 0, or None."""
        of_item = np.asarray(self.table.query)[self.items[:, 0]]
        size = min(self.batch_size, len(of_item))
        smallest = len(of_item) % size or size  # the last update of an epoch
        if np.unique(of_item, return_counts=True)[1].max() < smallest:
            return None
        for step in range(num_updates):
            _, chosen = self.sampler.update(step)
            if len(np.unique(of_item[chosen])) == 1:
                return step
        return None

    def group(self, epoch: int, item: np.ndarray) -> Group:
        group = self._make(int(item[0]), item[1:2])
        return group if self.rewards == "score" else replace(group, relevance=self._relevant[item[1:2]].astype(float))


def _share(slots: np.ndarray, fraction: float, *key: int) -> np.ndarray:
    return slots[permutation(len(slots), *key)[: round(fraction * len(slots))]]


def mismatched(groups: Sequence[Group]) -> list[Group]:
    """Each query with the candidate of the next group, in a circle, whose query differs.

    Empty where all have the same query. The pairs depend on the update alone, not on how it is cut or dealt.
    """
    queries = np.array([group.query for group in groups])
    pairs = []
    for number, group in enumerate(groups):
        following = np.roll(np.arange(len(groups)), -number - 1)[:-1]
        others = following[queries[following] != group.query]
        if len(others):
            other = groups[int(others[0])]
            pairs.append(replace(other, id=group.id, query=group.query))
    return pairs
