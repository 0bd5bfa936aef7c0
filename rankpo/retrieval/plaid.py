"""Approximate search of token vectors with fast-plaid (PLAID, https://arxiv.org/abs/2205.09707), an optional package."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from rankpo.errors import ConfigError
from rankpo.retrieval.dense import Hits, check_free
from rankpo.retrieval.ragged import Similarity
from rankpo.retrieval.stored import Stored, TokenEmbeddings
from rankpo.runs import processes
from rankpo.storage.atomic import replace_text

Say = Callable[[str], None]
TOKENS = 128  # Assumed tokens of a passage, to estimate memory.
READY = "ready.txt"  # This file marks the folder of a complete index.


class Index(Protocol):
    """Interface of fast-plaid's index."""

    def create(self, documents_embeddings: list[torch.Tensor]) -> object: ...

    def search(
        self, queries_embeddings: list[torch.Tensor], top_k: int, show_progress: bool
    ) -> list[list[tuple[int, float]]]: ...


def check_installed() -> None:
    """Raises ConfigError if fast-plaid is not installed."""
    if find_spec("fast_plaid") is None:
        raise ConfigError(
            [
                "backend=plaid needs fast-plaid, which supports some releases of torch: pip install fast-plaid; "
                "or set task.backend=exact"
            ]
        )


@dataclass(frozen=True, kw_only=True)
class PlaidSearch:
    """A search for the best `top_k` documents by fast-plaid's index, which is stored next to the vectors.

    The main process builds and searches. The index compresses vectors to a few bits, so `scores` (the model's
    `stored_similarity`) ranks its results by the original vectors.
    """

    top_k: int
    scores: Similarity
    device: torch.device
    say: Say

    def check_memory(self, num_queries: int, num_documents: int, dim: int) -> int:
        """Returns the bytes of `num_documents` texts of `TOKENS` tokens, which are in memory while the index is built.

        Raises TooLargeError if this memory is not free.
        """
        needed = 4 * dim * TOKENS * num_documents
        check_free(needed, torch.device("cpu"), num_queries, num_documents, self.say)
        return needed

    def hits(self, queries: Stored, corpus: Stored, num_documents: int | None = None) -> Hits:
        """Returns equal hits on every rank. Raises ConfigError for num_documents, which the index does not support."""
        if num_documents not in (None, len(corpus)):
            raise ConfigError(["backend=plaid searches whole corpora; set backend=exact"])
        depth = min(self.top_k, len(corpus))
        scores = np.full((len(queries), depth), -np.inf, dtype=np.float32)
        numbers = np.full((len(queries), depth), -1, dtype=np.int64)
        if processes.rank() == 0:
            assert isinstance(corpus, TokenEmbeddings)
            vectors = queries.vectors(np.arange(len(queries)))
            parts = list(vectors.rows.split(vectors.counts.tolist()))
            index = self._index(corpus)
            for row, found in enumerate(index.search(queries_embeddings=parts, top_k=depth, show_progress=False)):
                chosen = np.array([number for number, _ in found], dtype=np.int64)
                if len(chosen):
                    exact = self.scores(vectors.select(torch.tensor([row])), corpus.vectors(chosen))[0].numpy()
                    order = np.lexsort((chosen, -exact))
                    numbers[row, : len(chosen)], scores[row, : len(chosen)] = chosen[order], exact[order]
        if processes.world_size() > 1:
            scores, numbers = processes.broadcast_object((scores, numbers))
        return Hits(scores, numbers)

    def _index(self, corpus: TokenEmbeddings) -> Index:
        """Opens the index of a corpus, or builds it."""
        folder = corpus.folder / "plaid"
        key = corpus.encoding.key
        ready = folder / READY
        fresh = not (ready.is_file() and ready.read_text(encoding="utf-8") == key)
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
        index: Index = import_module("fast_plaid.search").FastPlaid(index=str(folder), device=str(self.device))
        if fresh:
            self.say(f"fast-plaid: building an index of {len(corpus)} documents in {folder}")
            documents = [part.float() for block in corpus.blocks() for part in block.rows.split(block.counts.tolist())]
            index.create(documents_embeddings=documents)
            replace_text(Path(ready), key)
        return index
