"""Idf: the keys of task=idf."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rankpo.retrieval.corpus import OWN, POOL, check_source
from rankpo.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class Idf(Task):
    """Counts the passages with each token of the model's vocabulary, and writes the inverse document frequencies.

    corpus: "pool" (all passages of the datasets' examples), "own" (the corpora of the datasets), or a file, folder or
    glob. output: a JSON object of tokens and weights, for `model.query_weights`, OpenSearch and sentence-transformers'
    `SparseStaticEmbedding.from_json`.
    The call returns the table's row.
    """

    corpus: str = POOL
    output: str = "idf.json"

    work: ClassVar[str] = "rankpo.tasks.work.idf"
    in_place_of_datasets: ClassVar[str] = "task.corpus"
    needs: ClassVar[frozenset[str]] = frozenset({"vectors"})
    several_processes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_source(self.corpus, "corpus")

    def reads_datasets(self) -> bool:
        return self.corpus in (OWN, POOL)
