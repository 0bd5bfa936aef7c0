"""Groups of one completion: what supervised fine-tuning learns from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rankpo.data.loaders.ranking import DataLoader, Group
from rankpo.data.table import ExampleTable


@dataclass(kw_only=True)
class CompletionDataLoader(DataLoader):
    """One completion per group.

    completions: "best" takes the one of largest relevance of each example (the first of equals), where it is > 0;
    "all" takes every one, desirable or not (loss=csft).
    """

    completions: str = "best"

    def __post_init__(self) -> None:
        if self.completions not in ("best", "all"):
            raise ValueError(f"dataloader.completions must be one of best, all, got {self.completions!r}")
        super().__post_init__()

    def make_items(self) -> np.ndarray:
        table = self.table
        if self.completions == "all":
            examples = np.repeat(np.arange(len(table)), np.diff(table.offsets))
            return np.stack([examples, np.arange(len(examples))], axis=1)
        return best_slots(table)

    def group(self, epoch: int, item: np.ndarray) -> Group:
        return self._make(int(item[0]), item[1:2])


def best_slots(table: ExampleTable) -> np.ndarray:
    """[n, 2] int64: each example with a relevant candidate, and the slot of its most relevant one, the first of equals."""
    relevance = np.asarray(table.relevance)
    items = []
    for example in np.flatnonzero(np.diff(table.offsets)):
        slots = table.slots(int(example))
        best = slots[np.argmax(relevance[slots])]
        if relevance[best] > 0:
            items.append((example, best))
    return np.array(items, dtype=np.int64).reshape(-1, 2)
