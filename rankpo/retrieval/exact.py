"""Exact search: the largest inner products of each query, chunk by chunk, within a memory that can be stated."""

from __future__ import annotations

import torch
from torch import Tensor

QUERIES_PER_CHUNK = 1024
DOCUMENTS_PER_CHUNK = 65536


def estimate_memory(num_queries: int, num_documents: int, dim: int, top_k: int) -> int:
    """Bytes that `search` holds at its peak, embeddings included."""
    block = min(num_queries, QUERIES_PER_CHUNK) * min(num_documents, DOCUMENTS_PER_CHUNK)
    best = 2 * num_queries * top_k * 12
    return 4 * (num_queries + num_documents) * dim + 4 * block + best


def search(
    queries: Tensor,
    corpus: Tensor,
    top_k: int,
    *,
    queries_per_chunk: int = QUERIES_PER_CHUNK,
    documents_per_chunk: int = DOCUMENTS_PER_CHUNK,
) -> tuple[Tensor, Tensor]:
    """Scores [Q, k] and document numbers [Q, k], best first, ties by number upwards; k is at most the corpus's size.

    queries: [Q, D]. corpus: [C, D], on the same device. The result does not depend on the chunk sizes.
    """
    depth = min(top_k, len(corpus))
    scores, numbers = [], []
    for block in queries.split(queries_per_chunk) if len(queries) else []:
        best = torch.empty(len(block), 0, device=queries.device)
        found = torch.empty(len(block), 0, dtype=torch.int64, device=queries.device)
        for start in range(0, len(corpus), documents_per_chunk):
            part = block.float() @ corpus[start : start + documents_per_chunk].float().T  # [q, c]
            candidates = torch.arange(start, start + part.shape[1], device=queries.device).expand(len(block), -1)
            best, found = _best(torch.cat([best, part], 1), torch.cat([found, candidates], 1), depth)
        scores.append(best)
        numbers.append(found)
    if not scores:
        return torch.empty(0, depth), torch.empty(0, depth, dtype=torch.int64)
    return torch.cat(scores), torch.cat(numbers)


def _best(scores: Tensor, numbers: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """The `depth` largest of each row; among equal scores at the border, the smallest numbers.

    topk alone picks any of the tied: so what is above the border is taken, and the ties at it by position, which
    rises with the number.
    """
    if scores.shape[1] <= depth:
        order = torch.sort(scores, dim=1, descending=True, stable=True).indices
        return scores.gather(1, order), numbers.gather(1, order)
    border = scores.topk(depth, dim=1).values[:, -1:]  # [q, 1]
    above, tied = scores > border, scores == border
    wanted = depth - above.sum(1, keepdim=True)
    kept = above | (tied & (tied.cumsum(1) <= wanted))
    columns = kept.nonzero()[:, 1].view(-1, depth)
    scores, numbers = scores.gather(1, columns), numbers.gather(1, columns)
    order = torch.sort(scores, dim=1, descending=True, stable=True).indices
    return scores.gather(1, order), numbers.gather(1, order)
