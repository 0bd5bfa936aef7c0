"""Loader of single completions for supervised fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from rankpo.data.loaders.ranking import DataLoader, Group
from rankpo.data.relevance import IRRELEVANT, UNKNOWN
from rankpo.data.table import ExampleTable


@dataclass(kw_only=True)
class CompletionDataLoader(DataLoader):
    """One completion per group.

    completions: "best" takes the completion with the largest relevance of each example (the first of equals), unless the
    data marks it as undesirable. "all" takes every completion, with relevance 1 or 0 (for loss=csft).
    """

    completions: str = "best"

    def __post_init__(self) -> None:
        if self.completions not in ("best", "all"):
            raise ValueError(f"dataloader.completions must be one of best, all, got {self.completions!r}")
        super().__post_init__()

    def make_items(self) -> np.ndarray:
        table = self.table
        counts = np.diff(table.offsets)
        if self.completions == "all":
            self._relevant = table.relevant("dataloader.completions=all")
            examples = np.repeat(np.arange(len(table)), counts)
            return np.stack([examples, np.arange(len(examples))], axis=1)
        alone = np.repeat(counts == 1, counts)
        if (np.asarray(table.stated)[alone] == UNKNOWN).any():  # A single candidate of unknown relevance.
            table.relevant("dataloader.completions=best")
        return best_slots(table)

    def group(self, epoch: int, item: np.ndarray) -> Group:
        group = self._make(int(item[0]), item[1:2])
        if self.completions == "best":
            return group
        return replace(group, relevance=self._relevant[item[1:2]].astype(np.float32))


def best_slots(table: ExampleTable) -> np.ndarray:
    """Each example and the slot of its most relevant candidate (the first of equals), [n, 2] int64.

    Examples whose best candidate is known to be irrelevant are excluded.
    """
    relevance, stated = np.asarray(table.relevance), np.asarray(table.stated)
    items = []
    for example in np.flatnonzero(np.diff(table.offsets)):
        slots = table.slots(int(example))
        best = slots[np.argmax(relevance[slots])]
        if stated[best] != IRRELEVANT:
            items.append((example, best))
    return np.array(items, dtype=np.int64).reshape(-1, 2)
