"""Search: the keys of task=search."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from rankpo.retrieval.corpus import OWN, POOL, check_source
from rankpo.retrieval.faiss_index import FaissSettings
from rankpo.tasks.base import Task

BACKENDS = ("exact", "faiss")


@dataclass(frozen=True, kw_only=True)
class Search(Task):
    """index: a folder of task=encode. queries: "own" or "pool" of the datasets, or a file, folder or glob.

    backend: "exact", or "faiss" with its settings. ignore_identical_ids: a hit whose id is the query's is dropped;
    None: as the datasets of queries=own say, else it is kept. Writes run.trec, hits.jsonl and search.json. The call
    returns the table's row.
    """

    index: str
    queries: str = "own"
    top_k: int = 100
    backend: str = "exact"
    faiss: FaissSettings = field(default_factory=FaissSettings)
    ignore_identical_ids: bool | None = None
    output: str = "search"

    work: ClassVar[str] = "rankpo.tasks.work.search"
    in_place_of_datasets: ClassVar[str] = "task.queries"
    needs: ClassVar[frozenset[str]] = frozenset({"vectors"})

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {self.backend!r}")
        if self.top_k < 1:
            raise ValueError(f"top_k must be >= 1, got {self.top_k}")
        check_source(self.queries, "queries")

    def reads_datasets(self) -> bool:
        return self.queries in (OWN, POOL)
