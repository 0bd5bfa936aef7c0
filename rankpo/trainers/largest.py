"""The largest group of the training data, which a forward pass may have to hold whole."""

from __future__ import annotations

import numpy as np

from rankpo.data.loaders.ranking import DataLoader
from rankpo.models.inputs import Inputs

LOOKED_AT = 64  # Groups of the longest examples: a group may draw a part of its example's candidates.


def largest_group(inputs: Inputs, loader: DataLoader, budget: int) -> int:
    """Tokens of the largest group among those of the longest examples; 0 if no example can have more than `budget`."""
    table = loader.table
    lengths, counts = table.lengths, np.diff(table.offsets)
    if (int(counts.max(initial=0)) + 1) * (int(lengths.max(initial=0)) + LOOKED_AT) <= budget:
        return 0
    ends = np.concatenate([[0], np.cumsum(lengths[np.asarray(table.candidates)])])
    totals = (ends[table.offsets[1:]] - ends[table.offsets[:-1]])[loader.items[:, 0]]
    chosen = np.argsort(-totals, kind="stable")[:LOOKED_AT]
    return int(inputs.costs(table, [loader.group(0, loader.items[number]) for number in chosen]).max(initial=0))
