"""GradedPool: all passages of an update with their known grades for each query.

Letters: b requested queries (of B) · P distinct passages of the update.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from rankpo.types import Batch


@dataclass(frozen=True)
class GradedPool:
    """rows [P]: rows of `Batch.sequences`. query_rows [b]: rows of the requested queries. grades [b, P], 0 if unknown.
    known [b, P] bool. own [b, G]: the columns of each query's own candidates; own_mask [b, G]: their mask.
    teaches [b] bool: whether a query's known grades differ.
    """

    rows: Tensor
    query_rows: Tensor
    grades: Tensor
    known: Tensor
    own: Tensor
    own_mask: Tensor
    teaches: Tensor

    def to(self, device: torch.device) -> GradedPool:
        """Copies the pool to the device without a wait."""
        return GradedPool(
            **{item.name: getattr(self, item.name).to(device, non_blocking=True) for item in fields(self)}
        )


def graded_pool(batch: Batch, queries: Tensor | None, irrelevant: bool) -> GradedPool:
    """The pool of the whole update on the CPU, for `queries`, indices [b] into the batch, or None for all.

    Grades come from the labels of all queries of equal text, and from `batch.judged` and `batch.grades`, the judgements
    in the rest of the data; the largest of several grades is used. irrelevant: unknown passages count as grade 0, or as
    the query's lowest grade, except for queries that use only their own negatives (`Batch.own_negatives`).
    """
    if batch.queries is None:
        raise ValueError("in-batch passages need query rows, but this batch has none; set loss.negatives=own")
    batch = batch.on_cpu
    assert batch.queries is not None
    mask, device = batch.labels.mask, batch.candidates.device
    asked = torch.arange(len(batch), device=device) if queries is None else queries
    rows, place = batch.candidates[mask].unique(return_inverse=True)  # [P], [unmasked]
    column = torch.zeros_like(batch.candidates)
    column[mask] = place
    _, group = batch.queries.unique(return_inverse=True)  # [B]: queries of equal text
    grades = _known_grades(batch, group, rows, place)[group[asked]]  # [b, P]
    if irrelevant:
        lowest = torch.where(grades.isfinite(), grades, torch.inf).amin(1, keepdim=True).clamp(max=0)
        wanted = ~grades.isfinite()
        if batch.own_negatives is not None:
            wanted = wanted & ~batch.own_negatives[asked][:, None]
        grades = torch.where(wanted, lowest, grades)
    known = grades.isfinite()
    high = torch.where(known, grades, -torch.inf).amax(1)
    low = torch.where(known, grades, torch.inf).amin(1)
    return GradedPool(
        rows=rows,
        query_rows=batch.queries[asked],
        grades=grades.masked_fill(~known, 0.0),
        known=known,
        own=column[asked],
        own_mask=mask[asked],
        teaches=high > low,
    )


def _known_grades(batch: Batch, group: Tensor, rows: Tensor, place: Tensor) -> Tensor:
    """Returns grades [distinct queries, P], -inf if unknown."""
    mask = batch.labels.mask
    count = int(group.max()) + 1 if len(group) else 0
    stated = batch.labels.relevance[mask]
    grades = torch.full((count, len(rows)), -torch.inf, dtype=stated.dtype, device=rows.device)
    owner = group[:, None].expand(mask.shape)[mask]
    grades = _raised(grades, owner, place, stated)
    if batch.judged is not None and batch.grades is not None and len(batch.judged):
        query, row = batch.judged.T.contiguous()
        at = torch.searchsorted(rows, row).clamp(max=len(rows) - 1)
        present = rows[at] == row
        grades = _raised(grades, group[query[present]], at[present], batch.grades[present].to(grades.dtype))
    return grades


def _raised(grades: Tensor, row: Tensor, column: Tensor, values: Tensor) -> Tensor:
    """Returns grades [n, P] with each entry (row, column) replaced by the maximum of itself and its value."""
    flat = grades.flatten().scatter_reduce(0, row * grades.shape[1] + column, values, "amax")
    return flat.view_as(grades)
