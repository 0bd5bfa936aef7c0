"""Search: the keys of task=search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from rankpo.evaluation.metrics import parse_metric
from rankpo.retrieval.bm25 import Bm25Settings
from rankpo.retrieval.corpus import OWN, POOL, check_source
from rankpo.retrieval.faiss_index import FaissSettings
from rankpo.retrieval.quantisation import DTYPES
from rankpo.tasks.base import Task

BACKENDS = ("exact", "inverted", "faiss", "plaid")
BM25 = "bm25"
PARTS = ("dense", "sparse", "colbert")  # Of a hybrid model.


@dataclass(frozen=True, kw_only=True)
class Search(Task):
    """Searches an encoded corpus, and writes run.trec, hits.jsonl and search.json.

    index: a folder of task=encode. queries: "own" or "pool" of the datasets, or a file, folder or glob.
    backend: "exact"; "inverted", an inverted index of sparse vectors; "faiss" with its settings; or "plaid" for token
    vectors, which needs fast-plaid.
    candidates: the first stage of a search in two stages; only its documents are scored. It is "bm25" over the texts of
    `corpus`, a part of a hybrid model ("dense", "sparse" or "colbert"), or the file of a TREC run, such as one of
    task=search with another model.
    candidate_depth: documents of the first stage for each query.
    rescore_multiplier: of an index with dtype int8, uint8, binary or ubinary. The first stage finds so many times top_k
    documents with quantised queries, and the queries in float32 order them; 0 keeps the order of the first stage.
    forms: dtypes of task=encode. `output`/forms/DTYPE has the vectors of the index in each of them, and a second table
    compares size, quality and speed.
    metrics: computed where the queries are those of datasets with judgements.
    texts: hits.jsonl has the text of every hit, and its title where it has one, from `corpus`.
    ignore_identical_ids: removes a hit with the id of its query. None takes the setting of the datasets for
    queries=own, and false otherwise.
    The call returns the table's row.
    """

    index: str
    queries: str = "own"
    top_k: int = 100
    backend: str = "exact"
    faiss: FaissSettings = field(default_factory=FaissSettings)
    candidates: str | None = None
    candidate_depth: int = 1000
    rescore_multiplier: int = 4
    forms: Sequence[str] = ()
    metrics: Sequence[str] = ("ndcg@10",)
    texts: bool = False
    corpus: str = "own"
    bm25: Bm25Settings = field(default_factory=Bm25Settings)
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
        if self.rescore_multiplier < 0:
            raise ValueError(f"rescore_multiplier must be >= 0, got {self.rescore_multiplier}")
        if wrong := [form for form in self.forms if form not in DTYPES]:
            raise ValueError(f"forms must be of {', '.join(DTYPES)}, got {wrong[0]!r}")
        if self.forms and (self.backend != "exact" or self.candidates is not None):
            raise ValueError("forms are compared by backend=exact without candidates")
        for name in self.metrics:
            parse_metric(name)
        check_source(self.queries, "queries")
        if self.texts:
            check_source(self.corpus, "corpus")
        if self.candidates is None:
            return
        if self.backend != "exact":
            raise ValueError(f"candidates={self.candidates} are scored exactly; backend={self.backend} must be exact")
        if self.candidate_depth < self.top_k:
            raise ValueError(f"candidate_depth={self.candidate_depth} must be >= top_k={self.top_k}")
        if self.candidates == BM25:
            check_source(self.corpus, "corpus")
        elif self.candidates not in PARTS and not Path(self.candidates).is_file():
            allowed = ", ".join((BM25, *PARTS))
            raise ValueError(f"candidates must be one of {allowed}, or the file of a TREC run, got {self.candidates!r}")

    @property
    def first_stage_of_texts(self) -> bool:
        """Whether the first stage is BM25 or a TREC run, which needs no vectors."""
        return self.candidates is not None and self.candidates not in PARTS

    def reads_datasets(self) -> bool:
        return self.queries in (OWN, POOL) or (self.reads_corpus and self.corpus in (OWN, POOL))

    @property
    def reads_corpus(self) -> bool:
        """Whether the texts of the documents are needed."""
        return self.texts or self.candidates == BM25
