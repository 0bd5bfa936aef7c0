"""Pool of the candidates of all queries of an update, and each query's negatives in it, from row numbers.

Sizes and index arrays are made on the CPU from the batch as it was collated, so that nothing waits for a GPU.

Letters: b requested queries (of B) · P entries of the pool · Q queries to compare a document with ·
U distinct candidate texts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankpo.types import Batch


@dataclass(frozen=True)
class Pool:
    """Rows of the pool's texts and of the queries, and their relations to the b requested queries.

    rows [P], query_rows [Q]: rows of `Batch.sequences`. positive [b]: the column of each query's positive among rows.
    query [b]: its own column among query_rows. These four are on the CPU, the others on the device of the batch.
    own [b, P] bool: candidates of the query itself, positive included. known [b, P] bool: texts known to be relevant to
    the query's text, positive included. same_query [b, Q] bool: queries of equal text, itself included. shared [b, Q]
    bool: queries to which the positive is known to be relevant, itself included. teacher [b, P]: teacher scores of own
    candidates, -inf elsewhere; None without a teacher. alone [b] bool: queries that use only their own negatives; None:
    no query does.
    """

    rows: Tensor
    positive: Tensor
    own: Tensor
    known: Tensor
    query_rows: Tensor
    query: Tensor
    same_query: Tensor
    shared: Tensor
    teacher: Tensor | None
    alone: Tensor | None = None

    @property
    def target(self) -> Tensor:
        """[b]: `positive` on the device of the relations."""
        return self.positive.to(self.own.device, non_blocking=True)

    @property
    def itself(self) -> Tensor:
        """[b]: `query` on the device of the relations."""
        return self.query.to(self.own.device, non_blocking=True)


@dataclass(frozen=True)
class KnownTexts:
    """Distinct texts of a batch, and their known relevance to the distinct queries, on the CPU.

    rows [U]: rows of the candidate texts. text [B, G]: index into rows, 0 on padding. query_rows [up to B],
    group [B]: the distinct queries and the one of each query. pairs [2, n]: distinct queries and texts known to be relevant.
    """

    rows: Tensor
    text: Tensor
    query_rows: Tensor
    group: Tensor
    pairs: Tensor

    def relevant(self, device: torch.device) -> Tensor:
        """[len(query_rows), U] bool on the device: True for the known pairs."""
        relevant = torch.zeros(len(self.query_rows), len(self.rows), dtype=torch.bool, device=device)
        group, text = self.pairs.to(device, non_blocking=True)
        relevant[group, text] = True
        return relevant


def known_texts(batch: Batch) -> KnownTexts:
    """Derives relevance from equal row numbers, `batch.positives`, and column 0 of all queries of equal text.

    Without query rows (models that read query and candidate jointly), each query is its own group.
    Raises ValueError if a query has no positive: its column 0 is masked.
    """
    batch = batch.on_cpu
    mask = batch.labels.mask
    if not mask[:, 0].all():
        missing = [batch.ids[i] for i in (~mask[:, 0]).nonzero().flatten().tolist()]
        raise ValueError(f"candidate 0 must be a query's positive; it is masked for {missing[:5]}")
    rows, place = batch.candidates[mask].unique(return_inverse=True)
    text = torch.zeros_like(batch.candidates)
    text[mask] = place
    named = torch.arange(len(batch), device=mask.device) if batch.queries is None else batch.queries
    query_rows, group = named.unique(return_inverse=True)
    pairs = torch.stack([group, text[:, 0]])
    if batch.positives is not None and len(batch.positives):
        query, row = batch.positives.T.contiguous()
        column = torch.searchsorted(rows, row).clamp(max=len(rows) - 1)
        present = rows[column] == row  # Known positives may be absent from the update.
        pairs = torch.cat([pairs, torch.stack([group[query[present]], column[present]])], dim=1)
    return KnownTexts(rows, text, query_rows, group, pairs)


def build_pool(batch: Batch, queries: Tensor | None, deduplicate: bool) -> Pool:
    """The pool of the whole update for `queries`, indices [b] into the batch on the CPU, or None for all.

    deduplicate: each distinct text is one entry, and each distinct query one column; otherwise each unmasked
    (query, candidate) is a separate entry.
    """
    if batch.queries is None:
        raise ValueError("in-batch negatives need query rows, but this batch has none; set loss.negatives=own")
    texts, mask, device = known_texts(batch), batch.on_cpu.labels.mask, batch.candidates.device
    asked = torch.arange(len(mask)) if queries is None else queries
    entries = torch.arange(len(texts.rows)) if deduplicate else texts.text[mask]  # [P] -> U
    column = texts.text if deduplicate else torch.zeros_like(texts.text)  # [B, G] -> P
    if not deduplicate:
        column[mask] = torch.arange(len(entries))
    groups = torch.arange(len(texts.query_rows)) if deduplicate else texts.group  # [Q]

    def moved(index: Tensor) -> Tensor:
        return index.to(device, non_blocking=True)

    query, candidate = mask[asked].nonzero(as_tuple=True)
    places = moved(query), moved(column[asked][query, candidate])
    own = torch.zeros(len(asked), len(entries), dtype=torch.bool, device=device)
    own[places] = True
    teacher = batch.labels.teacher
    if teacher is not None:
        unknown = torch.full(own.shape, -torch.inf, dtype=teacher.dtype, device=device)
        teacher = unknown.index_put(places, teacher[moved(asked[query]), moved(candidate)])
    relevant, group = texts.relevant(device), moved(texts.group[asked])
    return Pool(
        rows=texts.rows[entries],
        positive=column[asked, 0],
        own=own,
        known=relevant[group][:, moved(entries)],
        query_rows=texts.query_rows[groups],
        query=texts.group[asked] if deduplicate else asked,
        same_query=moved(groups) == group[:, None],
        shared=relevant.T[moved(texts.text[asked, 0])][:, moved(groups)],
        teacher=teacher,
        alone=None if batch.own_negatives is None else batch.own_negatives[moved(asked)],
    )


def own_candidates(batch: Batch, same_text: bool, deduplicate: bool) -> Tensor:
    """Mask [B, G] of the query's positive (column 0) and its own negatives, for a batch on the CPU.

    same_text: masks further texts known to be relevant to the query. deduplicate: masks repetitions of a text.
    """
    texts = known_texts(batch)
    keep = batch.labels.mask.clone()
    if same_text:
        keep &= ~texts.relevant(keep.device)[texts.group[:, None], texts.text]
    if deduplicate:
        equal = (texts.text[:, :, None] == texts.text[:, None, :]) & batch.labels.mask[:, None, :]  # [B, G, G]
        keep &= ~equal.tril(-1).any(-1)
    keep[:, 0] = True
    return keep
