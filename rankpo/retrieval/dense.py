"""Dense search over stored embeddings, exact or with faiss, on all processes, with a memory estimate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import psutil
import torch

from rankpo.errors import ConfigError
from rankpo.retrieval.embeddings import Embeddings
from rankpo.retrieval.exact import QUERIES_PER_CHUNK, estimate_memory, search_blocks
from rankpo.retrieval.faiss_index import FaissIndex, FaissSettings
from rankpo.retrieval.sparse import InvertedIndex, search_products
from rankpo.retrieval.stored import Stored
from rankpo.runs import processes

BACKENDS = ("exact", "inverted", "faiss")

Say = Callable[[str], None]


class TooLargeError(RuntimeError):
    """Raised before a search that would not fit into memory."""


@dataclass(frozen=True)
class Hits:
    """Results of a search, best first. scores: [Q, k] float32. numbers: [Q, k] rows of the corpus; -1 fills short lists.

    recall: of an approximate index, the fraction of the exact top k that it found, over `checked` queries; else None.
    """

    scores: np.ndarray
    numbers: np.ndarray
    recall: float | None = None
    checked: int = 0


@dataclass(frozen=True, kw_only=True)
class DenseSearch:
    """A search for the best `top_k` documents of every query.

    device: of the exact search. say: prints progress lines. faiss: the settings of an index; None: exact search.
    inverted: an inverted index for sparse vectors, whose results are exact.
    """

    top_k: int
    device: torch.device
    say: Say
    faiss: FaissSettings | None = None
    inverted: bool = False

    def check_memory(self, num_queries: int, num_documents: int, dim: int) -> int:
        """Returns and reports the bytes that the search needs on `device`; call it before encoding.

        Raises TooLargeError if this memory is not free.
        """
        needed = estimate_memory(num_queries, num_documents, dim, min(self.top_k, num_documents), resident=False)
        if self.faiss is not None:
            rescored = 24 * num_queries * self.top_k * max(1, self.faiss.rescore)
            needed = self.faiss.memory(num_documents, dim) + rescored
        place = torch.device("cpu") if self.faiss is not None else self.device
        check_free(needed, place, num_queries, num_documents, self.say)
        return needed

    def hits(self, queries: Stored, corpus: Stored, num_documents: int | None = None) -> Hits:
        """Returns equal hits on every rank. num_documents: searches only the first rows of the corpus."""
        assert isinstance(queries, Embeddings) and isinstance(corpus, Embeddings)
        limit = len(corpus) if num_documents is None else num_documents
        if corpus.sparse:
            return self._sparse(queries, corpus, limit)
        if self.inverted:
            raise ConfigError(
                [f"{corpus.folder} holds dense vectors, but backend=inverted needs sparse ones; set backend=exact"]
            )
        vectors = torch.from_numpy(queries.rows(np.arange(len(queries))))
        if self.faiss is None:
            return self._exact(vectors, corpus, limit)
        return self._by_index(vectors.numpy(), corpus, self.faiss, limit)

    def _exact(self, vectors: torch.Tensor, corpus: Embeddings, limit: int) -> Hits:
        """Ranks process chunks of queries in turn, so that the products do not depend on the number of ranks."""
        own = own_rows(len(vectors), QUERIES_PER_CHUNK)
        found = search_blocks(vectors[own].to(self.device), corpus.blocks(limit), self.top_k)
        return gathered(found, own, len(vectors), self.device)

    def _sparse(self, queries: Embeddings, corpus: Embeddings, limit: int) -> Hits:
        """Ranks process chunks of queries in turn, as in `_exact`, on the CPU."""
        if self.faiss is not None:
            raise ConfigError([f"{corpus.folder} holds sparse vectors; set backend=exact or backend=inverted"])
        dim, count = corpus.encoding.dim, len(queries)
        own = own_rows(count, QUERIES_PER_CHUNK)
        vectors = queries.sparse_rows(own.numpy())
        if self.inverted:
            found = InvertedIndex(corpus.sparse_blocks(limit), dim).search(vectors, self.top_k)
        else:
            found = search_products(vectors, corpus.sparse_blocks(limit), dim, self.top_k)
        return gathered(found, own, count, self.device)

    def _by_index(self, vectors: np.ndarray, corpus: Embeddings, settings: FaissSettings, limit: int) -> Hits:
        """The main process builds and searches; faiss uses all its threads."""
        depth = min(self.top_k, limit)
        scores = torch.empty(0, depth)
        numbers = torch.empty(0, depth, dtype=torch.int64)
        own = torch.empty(0, dtype=torch.int64)
        recall, checked = None, 0
        if processes.rank() == 0:
            own = torch.arange(len(vectors))
            found = FaissIndex(settings, corpus, self.say, limit).search(vectors, self.top_k)
            scores, numbers = torch.from_numpy(found[0]), torch.from_numpy(found[1].astype(np.int64))
            if settings.approximate and settings.check_queries and len(vectors):
                checked = min(settings.check_queries, len(vectors))
                rows = np.linspace(0, len(vectors) - 1, checked).astype(np.int64)
                recall = self._recall(vectors[rows], found[1][rows], corpus, limit)
                self.say(f"{settings.kind}: recall@{depth} {recall:.4f} against exact search, over {checked} queries")
        if processes.world_size() > 1:
            scores = processes.place_rows(scores.to(self.device), own, len(vectors)).cpu()
            numbers = processes.place_rows(numbers.to(self.device), own, len(vectors)).cpu()
            recall, checked = processes.broadcast_object((recall, checked))
        return Hits(scores.numpy(), numbers.numpy(), recall, checked)

    def _recall(self, vectors: np.ndarray, numbers: np.ndarray, corpus: Embeddings, limit: int) -> float:
        """Returns the fraction of the exact best documents that an index found. numbers: [Q, k] its results."""
        depth = min(self.top_k, limit)
        _, exact = search_blocks(torch.from_numpy(vectors).to(self.device), corpus.blocks(limit), depth)
        found = [len(np.intersect1d(own, best)) for own, best in zip(numbers, exact.cpu().numpy(), strict=True)]
        return float(np.mean(found)) / depth


def own_rows(count: int, chunk: int) -> torch.Tensor:
    """Returns the queries of this rank; ranks process chunks of `chunk` queries in turn."""
    chunks = torch.arange(count) // chunk
    return torch.nonzero(chunks % processes.world_size() == processes.rank())[:, 0]


def gathered(found: tuple[torch.Tensor, torch.Tensor], own: torch.Tensor, count: int, device: torch.device) -> Hits:
    """The hits of all `count` queries on every rank. found: scores and numbers of `own`. device: of the exchange."""
    scores, numbers = found
    if processes.world_size() > 1:
        scores = processes.place_rows(scores.to(device), own, count)
        numbers = processes.place_rows(numbers.to(device), own, count)
    return Hits(scores.cpu().numpy(), numbers.cpu().numpy())


def check_free(needed: int, device: torch.device, num_queries: int, num_documents: int, say: Say) -> None:
    """Reports the memory that a search needs on a device. Raises TooLargeError if it is not free."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    say(f"search: {num_queries} queries, {num_documents} documents, needs {_size(needed)} of {_size(free)} free memory")
    if needed > free:
        raise TooLargeError(
            f"the search needs {_size(needed)}, but only {_size(free)} are free; lower top_k, "
            "or use backend=faiss with faiss.kind=ivf_pq"
        )


def _size(number: int) -> str:
    return f"{number / 2**30:.2f} GiB" if number >= 2**27 else f"{number / 2**20:.1f} MiB"
