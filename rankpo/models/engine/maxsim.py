"""MaxSim scores of late interaction (ColBERT, https://arxiv.org/abs/2004.12832) over packed token vectors.

The score of a query and a document is the sum over the query's vectors of their largest inner product with a vector of
the document. Scores are computed in blocks of query rows × document rows, and a block's inner products are reduced to
their maxima at once. Backward reads the place of each maximum, so memory grows with query rows × documents.

Letters: q queries · c documents · Q query rows · L rows of the longest document of a block
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rankpo.types import Vectors

ROWS = {"cpu": 1024}  # Document rows of a block; on a CPU, their vectors fit in the L2 cache.
SCORES = {"cpu": 1 << 18}  # Inner products of a block.
ROWS_IN_PLACE, COLUMNS_IN_PLACE = 4096, 256  # Document and query rows of a block without gradient on a CPU.
MANY_ROWS, MANY_SCORES = 1 << 16, 1 << 25  # On GPUs, where large blocks save kernel launches.
PAIRED = 8  # Factor on the document rows of a block of pairs, since each document is compared with one query only.
EMPTY = -1e9  # Score of a document without vectors, as in sentence-transformers: below every other.


def maxsim(queries: Vectors, documents: Vectors) -> Tensor:
    """[q, c] scores of every query with every document, with gradient, in the dtype of the rows.

    A query without vectors has the score 0, a document without vectors `EMPTY`.
    """
    scores: Tensor = _MaxSim.apply(queries.rows, documents.rows, queries.counts, documents.counts)  # type: ignore[no-untyped-call]
    return scores


def paired_maxsim(queries: Vectors, documents: Vectors) -> Tensor:
    """[n] scores of query i with document i, with gradient; otherwise as `maxsim`."""
    if not len(documents.rows):  # There are no rows to gather.
        documents = Vectors(documents.rows.new_zeros(1, documents.rows.shape[1]), documents.counts)
    with torch.no_grad():
        places = _best_places(queries, documents)  # [Q] rows of the documents
    best = (queries.rows * documents.rows.index_select(0, places.clamp(min=0))).sum(1)
    best = best.masked_fill(places < 0, 0.0)
    scores = _sums(best[:, None], queries.counts)[:, 0]
    return scores.masked_fill((documents.counts == 0).to(scores.device, non_blocking=True), EMPTY)


@dataclass(frozen=True)
class _Block:
    """Documents of similar length, padded by repetitions of their last row.

    columns: [n] numbers of the documents. rows: [n * L] their rows. counts: [n].
    """

    columns: Tensor
    rows: Tensor
    counts: Tensor

    @property
    def width(self) -> int:
        """L."""
        return len(self.rows) // len(self.columns)

    def to(self, device: torch.device) -> _Block:
        return _Block(*(item.to(device, non_blocking=True) for item in (self.columns, self.rows, self.counts)))

    def real(self) -> Tensor:
        """[n * L] bool, False for repetitions."""
        return (torch.arange(self.width, device=self.counts.device) < self.counts[:, None]).flatten()


def _blocks(counts: Tensor, budget: int) -> Iterator[_Block]:
    """Blocks of at most `budget` rows, padded, at least one document each; documents without rows are left out."""
    starts = counts.cumsum(0) - counts
    order = torch.argsort(counts, descending=True, stable=True)
    order = order[counts[order] > 0]
    begin = 0
    while begin < len(order):
        width = int(counts[order[begin]])
        chosen = order[begin : begin + max(1, budget // width)]
        offsets = torch.minimum(torch.arange(width), counts[chosen, None] - 1)
        yield _Block(chosen, (starts[chosen, None] + offsets).flatten(), counts[chosen])
        begin += len(chosen)


class _Context(Protocol):
    """Values that forward stores for backward. places: [Q, n] for each block."""

    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Tensor, ...]
    places: list[Tensor]

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class _MaxSim(torch.autograd.Function):
    """`maxsim` with stored indices of the maxima for backward."""

    @staticmethod
    def forward(ctx: _Context, queries: Tensor, documents: Tensor, query_counts: Tensor, counts: Tensor) -> Tensor:
        needed = any(ctx.needs_input_grad[:2])
        if not needed and queries.device.type == "cpu" and queries.dtype in (torch.float32, torch.float64):
            return _without_places(Vectors(queries, query_counts), Vectors(documents, counts))
        scores = queries.new_full((len(query_counts), len(counts)), EMPTY)
        places = []
        for block in _blocks(counts, _rows(queries)):
            here = block.to(queries.device)
            maxima, best = _block_maxima(queries, documents[here.rows], here, needed)
            scores[:, here.columns] = _sums(maxima, query_counts)
            if best is not None:
                places.append(best)
        ctx.save_for_backward(queries, documents, query_counts, counts)
        ctx.places = places
        return scores

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        queries, documents, query_counts, counts = ctx.saved_tensors
        of_queries, of_documents = torch.zeros_like(queries), torch.zeros_like(documents)
        repeated = torch.arange(len(query_counts)).repeat_interleave(query_counts).to(queries.device, non_blocking=True)
        for block, best in zip(_blocks(counts, _rows(queries)), ctx.places, strict=True):
            here = block.to(queries.device)
            weights = gradient[:, here.columns][repeated]  # [Q, n]
            rows = documents[here.rows]
            real = block.real().nonzero().squeeze(1).to(rows.device, non_blocking=True)
            of_rows = torch.zeros_like(rows)
            offsets = torch.arange(len(here.columns), device=rows.device) * here.width
            for part in _row_blocks(queries, len(rows)):
                spread = rows.new_zeros(len(queries[part]), len(rows))
                spread.scatter_(1, best[part].long() + offsets, weights[part])
                of_queries[part].addmm_(spread, rows)
                of_rows.addmm_(spread.T, queries[part])
            of_documents[here.rows[real]] = of_rows[real]
        return of_queries, of_documents, None, None


def _without_places(queries: Vectors, documents: Vectors) -> Tensor:
    """`maxsim` on a CPU without gradient: documents are read in place, in their order, without padding."""
    scores = queries.rows.new_full((len(queries), len(documents)), EMPTY)
    filled = torch.nonzero(documents.counts).squeeze(1)
    borders = [0, *documents.counts[filled].cumsum(0).tolist()]
    first, transposed = 0, queries.rows.T.contiguous()
    while first < len(filled):
        last = max(first + 1, bisect_right(borders, borders[first] + ROWS_IN_PLACE) - 1)
        maxima = _row_maxima(documents.rows, transposed, borders[first : last + 1])
        scores[:, filled[first:last]] = _sums(maxima.T.contiguous(), queries.counts)
        first = last
    return scores


def _row_maxima(rows: Tensor, queries: Tensor, borders: list[int]) -> Tensor:
    """[n, Q] maxima of rows @ queries over the rows of each document. queries: [D, Q]. borders: [n + 1] of the documents."""
    maxima = rows.new_empty(len(borders) - 1, queries.shape[1])
    begin = borders[0]
    for columns in torch.arange(queries.shape[1]).split(COLUMNS_IN_PLACE):
        part = slice(int(columns[0]), int(columns[-1]) + 1)
        with torch.autocast("cpu", enabled=False):
            products = (rows[begin : borders[-1]] @ queries[:, part]).numpy()
        best = maxima[:, part].numpy()
        for number, (start, end) in enumerate(pairwise(borders)):
            np.maximum.reduce(products[start - begin : end - begin], axis=0, out=best[number])
    return maxima


def _rows(queries: Tensor) -> int:
    """Returns the document rows of a block on the device of the queries."""
    return ROWS.get(queries.device.type, MANY_ROWS)


def _row_blocks(queries: Tensor, width: int) -> Iterator[slice]:
    """Yields blocks of query rows whose inner products with `width` document rows fit in the device's `SCORES`."""
    size = max(1, SCORES.get(queries.device.type, MANY_SCORES) // width)
    for start in range(0, len(queries), size):
        yield slice(start, start + size)


def _block_maxima(queries: Tensor, rows: Tensor, block: _Block, with_places: bool) -> tuple[Tensor, Tensor | None]:
    """[Q, n] maxima over each document's rows, and [Q, n] int32 indices of the maxima in the document.

    rows: [n * L, D] vectors of the block.
    """
    shape = len(queries), len(block.columns)
    maxima = queries.new_empty(shape)
    places = torch.empty(shape, dtype=torch.int32, device=queries.device) if with_places else None
    for part in _row_blocks(queries, len(rows)):
        products = (queries[part] @ rows.T).view(-1, len(block.columns), block.width)
        if places is None:
            maxima[part] = products.amax(2)
        else:
            maxima[part], best = products.max(2)
            places[part] = torch.minimum(best, block.counts - 1)  # A padding row repeats the last row.
    return maxima, places


def _best_places(queries: Vectors, documents: Vectors) -> Tensor:
    """[Q] rows of the documents with the largest inner product for each row of the paired queries, -1 for none."""
    device = queries.rows.device

    def moved(index: Tensor) -> Tensor:
        return index.to(device, non_blocking=True)

    places = torch.full((len(queries.rows),), -1, dtype=torch.int64, device=device)
    starts = documents.counts.cumsum(0) - documents.counts
    first = queries.counts.cumsum(0) - queries.counts
    for block in _blocks(documents.counts, _rows(queries.rows) * PAIRED):
        asked = queries.counts[block.columns]
        width = int(asked.max())
        if width == 0:
            continue
        offsets = torch.arange(width)
        rows = first[block.columns, None] + torch.minimum(offsets, (asked[:, None] - 1).clamp(min=0))
        mine = queries.rows[moved(rows.clamp(max=len(queries.rows) - 1))]  # [n, T, D]
        theirs = documents.rows[moved(block.rows)].view(len(block.columns), block.width, -1)
        best = torch.minimum((mine @ theirs.transpose(1, 2)).argmax(2), moved(block.counts[:, None] - 1))
        real = (offsets < asked[:, None]).flatten().nonzero().squeeze(1)
        found = (best + moved(starts[block.columns, None])).flatten()
        places[moved(rows.flatten()[real])] = found[moved(real)]
    return places


def _sums(values: Tensor, counts: Tensor) -> Tensor:
    """[q, n] sums of the rows of each query. values: [Q, n]; counts: [q] on the CPU.

    Queries are padded with a row of zeros, since index_add has no fixed order of summation on a GPU.
    """
    width = int(counts.max()) if len(counts) else 0
    if bool((counts == width).all()):
        return values.view(len(counts), width, values.shape[1]).sum(1)
    starts = counts.cumsum(0) - counts
    offsets = torch.arange(width)
    rows = torch.where(offsets < counts[:, None], starts[:, None] + offsets, len(values)).to(
        values.device, non_blocking=True
    )
    return torch.cat([values, values.new_zeros(1, values.shape[1])])[rows].sum(1)
