"""Loader of unpaired preferences: groups of one desirable or undesirable candidate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rankpo.data.loaders.ranking import DataLoader, Group
from rankpo.data.random_keys import permutation

ALTERNATIVES = {  # By `rewards`, a setting under which the relevance of completions is not needed.
    "label": "with loss=ppo set loss.rewards=score, which takes the labels themselves as rewards",
    "score": "set dataloader.desirable_fraction and dataloader.undesirable_fraction to 1",
}


@dataclass(kw_only=True)
class UnpairedPreferenceDataLoader(DataLoader):
    """Groups of one candidate, which is desirable if it is relevant. A pair gives one desirable and one undesirable item.

    desirable_fraction, undesirable_fraction: the fraction in (0, 1] of items of each kind that is used, drawn once by the
    seed. rewards: with `label`, the relevance of an item is 1 or 0; with `score`, it is the number in the data (for
    loss=ppo), and no threshold is needed as long as all items are used.
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
        wanted_by = "a loss on desirable and undesirable completions"
        desirable = self._relevant = table.relevant(wanted_by, ALTERNATIVES[self.rewards])
        kept = [
            _share(np.flatnonzero(kind), fraction, self.seed, number)
            for number, (kind, fraction) in enumerate(
                ((desirable, self.desirable_fraction), (~desirable, self.undesirable_fraction))
            )
        ]
        slots = np.sort(np.concatenate(kept))
        return np.stack([examples[slots], slots], axis=1)

    def counts(self) -> tuple[int, int]:
        """The numbers of desirable and undesirable items of an epoch."""
        desirable = int(self._relevant[self.items[:, 1]].sum())
        return desirable, len(self.items) - desirable

    def first_update_of_one_prompt(self, num_updates: int) -> int | None:
        """The first of `num_updates` updates, counted from 0, whose items all have the same prompt, or None."""
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
    """Each query with the candidate of the next group (cyclically) whose query differs.

    The result is empty if all groups have the same query. The pairs do not depend on micro-batches and ranks.
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
