"""Exact search of the largest inner products of each query, chunk by chunk, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from rankpo.types import Vectors

QUERIES_PER_CHUNK = 1024
DOCUMENTS_PER_CHUNK = 65536
BYTES_PER_SCORE = 4  # float32; topk needs no second block
ROWS_WITH_TIES = 32  # Rows that are resolved at once, since they need several blocks of their size.
BYTES_PER_HIT = 2 * 12  # Score and number, for new and for merged hits.

Products = Callable[[Tensor, Tensor], Tensor]


def inner(queries: Tensor, documents: Tensor) -> Tensor:
    """[q, c] inner products in float32."""
    return queries.float() @ documents.float().T


def estimate_memory(num_queries: int, num_documents: int, dim: int, top_k: int, *, resident: bool = True) -> int:
    """Returns the peak memory of a search in bytes, including embeddings in float32.

    resident: False if documents are read from disk block by block, so that only one chunk is in memory.
    """
    chunk = min(num_documents, DOCUMENTS_PER_CHUNK)
    block = min(num_queries, QUERIES_PER_CHUNK) * chunk
    rows = num_queries + (num_documents if resident else 0) + chunk
    return 4 * rows * dim + BYTES_PER_SCORE * block + BYTES_PER_HIT * num_queries * top_k


def search(
    queries: Tensor,
    corpus: Tensor,
    top_k: int,
    *,
    queries_per_chunk: int = QUERIES_PER_CHUNK,
    documents_per_chunk: int = DOCUMENTS_PER_CHUNK,
) -> tuple[Tensor, Tensor]:
    """Scores [Q, k] and document numbers [Q, k], best first, ties by ascending number; k is at most the corpus size.

    queries: [Q, D]. corpus: [C, D]. The result does not depend on the chunk sizes.
    Raises ValueError for a score that is not finite.
    """
    return search_blocks(
        queries, [corpus], top_k, queries_per_chunk=queries_per_chunk, documents_per_chunk=documents_per_chunk
    )


def search_blocks(
    queries: Tensor,
    blocks: Iterable[Tensor],
    top_k: int,
    *,
    products: Products = inner,
    queries_per_chunk: int = QUERIES_PER_CHUNK,
    documents_per_chunk: int = DOCUMENTS_PER_CHUNK,
) -> tuple[Tensor, Tensor]:
    """Like `search`, over an iterable of blocks [c, D]; every block is read once.

    The search runs on the device of the queries; blocks are moved there chunk by chunk. products: computes the scores
    [q, c] float32 of queries and documents.
    """
    chunks = list(queries.split(queries_per_chunk)) if len(queries) else []
    scores = [torch.empty(len(chunk), 0, device=queries.device) for chunk in chunks]
    numbers = [torch.empty(len(chunk), 0, dtype=torch.int64, device=queries.device) for chunk in chunks]
    start = 0
    for block in blocks:
        for part in block.split(documents_per_chunk):
            documents = part.to(queries.device)  # [c, D]
            for index, chunk in enumerate(chunks):
                found, columns = best(products(chunk, documents), top_k)  # [q, k]
                merged = torch.cat([scores[index], found], 1)
                candidates = torch.cat([numbers[index], columns + start], 1)
                # Earlier hits come first, so that equal scores are ordered by number.
                scores[index], columns = best(merged, top_k)
                numbers[index] = candidates.gather(1, columns)
            start += len(part)
    if not chunks:
        return torch.empty(0, min(top_k, start)), torch.empty(0, min(top_k, start), dtype=torch.int64)
    result = torch.cat(scores), torch.cat(numbers)
    if not bool(torch.isfinite(result[0]).all()):
        row, place = torch.nonzero(~torch.isfinite(result[0]))[0].tolist()
        document = int(result[1][row, place])
        raise ValueError(f"query row {row}, document row {document}: the score is {float(result[0][row, place])}")
    return result


def search_vectors(
    queries: Vectors,
    corpus: Vectors,
    similarity: Callable[[Vectors, Vectors], Tensor],
    top_k: int,
    *,
    queries_per_chunk: int = QUERIES_PER_CHUNK,
    rows_per_chunk: int = DOCUMENTS_PER_CHUNK,
) -> tuple[Tensor, Tensor]:
    """Like `search`, with the scores of a model's `stored_similarity`. rows_per_chunk: vectors of a chunk's documents."""
    numbers = torch.arange(len(queries))
    found = [
        _search_chunk(queries.select(chunk), corpus, similarity, top_k, rows_per_chunk)
        for chunk in numbers.split(queries_per_chunk)
        if len(chunk)
    ]
    if not found:
        depth = min(top_k, len(corpus))
        return torch.empty(0, depth), torch.empty(0, depth, dtype=torch.int64)
    scores = torch.cat([item[0] for item in found])
    if not bool(torch.isfinite(scores).all()):
        row, place = torch.nonzero(~torch.isfinite(scores))[0].tolist()
        raise ValueError(f"query row {row}: a score is {float(scores[row, place])}")
    return scores, torch.cat([item[1] for item in found])


def _search_chunk(
    queries: Vectors, corpus: Vectors, similarity: Callable[[Vectors, Vectors], Tensor], top_k: int, rows: int
) -> tuple[Tensor, Tensor]:
    scores = torch.empty(len(queries), 0)
    numbers = torch.empty(len(queries), 0, dtype=torch.int64)
    for part in _by_rows(corpus.counts, rows):
        found, columns = best(similarity(queries, corpus.between(int(part[0]), int(part[-1]) + 1)).float(), top_k)
        # Earlier documents come first, so that equal scores are ordered by number.
        candidates = torch.cat([numbers, part[columns]], 1)
        scores, columns = best(torch.cat([scores, found], 1), top_k)
        numbers = candidates.gather(1, columns)
    return scores, numbers


def _by_rows(counts: Tensor, rows: int) -> Iterator[Tensor]:
    """Splits document numbers into chunks of about `rows` vectors, at least one document each."""
    chunk = (counts.cumsum(0) - counts) // rows
    yield from torch.arange(len(counts)).split(torch.unique_consecutive(chunk, return_counts=True)[1].tolist())


def best(scores: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """The `depth` largest of each row and their columns, best first; among equal scores, the first columns.

    scores: [q, c]. Both results are [q, min(depth, c)].
    """
    if scores.shape[1] <= depth:
        values, columns = torch.sort(scores, dim=1, descending=True, stable=True)
        return values, columns
    # One more than needed, to detect ties at the border: topk picks any of them, so these rows are computed again.
    values, columns = scores.topk(depth + 1, dim=1)
    tied = values[:, depth - 1] == values[:, depth]
    crowded = torch.nonzero(tied & ~values[:, 0].isnan())[
        :, 0
    ]  # NaN sorts as the largest; a later check raises for it.
    values, columns = values[:, :depth], columns[:, :depth].clone()
    for rows in crowded.split(ROWS_WITH_TIES):
        columns[rows] = _first_tied(scores[rows], values[rows], columns[rows])
    columns = columns.sort(1).values
    values = scores.gather(1, columns)
    values, order = torch.sort(values, dim=1, descending=True, stable=True)
    return values, columns.gather(1, order)


def _first_tied(scores: Tensor, values: Tensor, columns: Tensor) -> Tensor:
    """Replaces the columns of values at the border, the smallest of each row, by the first columns with that score.

    scores: [q, c]. values, columns: [q, depth] the largest of each row, in any order of equal values.
    """
    border = values[:, -1:]
    at_border = values == border
    rows, tied = (scores == border).nonzero().unbind(1)
    counts = torch.bincount(rows, minlength=len(scores))
    place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    kept = place < at_border.sum(1)[rows]
    return columns.masked_scatter(at_border, tied[kept])
