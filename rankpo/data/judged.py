"""Grades of the passages of an update from the whole data, in addition to each query's own candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from rankpo.data.loaders.ranking import Group
from rankpo.data.table import ExampleTable
from rankpo.types import Batch


def with_grades(batch: Batch, table: ExampleTable, groups: Sequence[Group]) -> Batch:
    """The batch of these groups with `judged` and `grades`.

    For each query, they hold every passage of the batch that any example of the table judges for it, and its grade.
    """
    shown = np.concatenate([group.candidates for group in groups])  # Rows of the table, in the order of the mask.
    rows, first = np.unique(shown, return_index=True)
    placed = batch.candidates[batch.labels.mask].numpy()[first]  # The rows of these candidates in the batch.
    queries, candidates, grades = [], [], []
    for number, group in enumerate(groups):
        judged, relevance = table.judged(group.query)
        at = np.minimum(np.searchsorted(rows, judged), len(rows) - 1)
        present = rows[at] == judged
        queries.append(np.full(int(present.sum()), number, dtype=np.int64))
        candidates.append(placed[at[present]])
        grades.append(relevance[present])
    pairs = np.stack([np.concatenate(queries), np.concatenate(candidates)], axis=1)
    values = np.concatenate(grades).astype(np.float32)
    return replace(batch, judged=torch.from_numpy(pairs), grades=torch.from_numpy(values))
