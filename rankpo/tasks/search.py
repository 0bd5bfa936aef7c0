"""task=search: the top k of a corpus that task=encode wrote, for every query; run.trec, hits.jsonl, search.json."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rankpo.errors import ConfigError
from rankpo.retrieval.corpus import OWN, POOL, check_source, open_source
from rankpo.retrieval.faiss_index import FaissSettings
from rankpo.storage.atomic import replace_text, replacing
from rankpo.tasks.base import Task

if TYPE_CHECKING:
    from rankpo.config.experiment import Experiment
    from rankpo.data.dataset import Dataset
    from rankpo.models.embedding.model import EmbeddingModel
    from rankpo.retrieval.dense import Hits
    from rankpo.retrieval.embeddings import Embeddings

BACKENDS = ("exact", "faiss")
SAME_SETTINGS = ("pooling", "normalize", "truncate_dim")


@dataclass(frozen=True, kw_only=True)
class Search(Task):
    """index: a folder of task=encode. queries: "own" or "pool" of the datasets, or a file, folder or glob.

    backend: "exact", or "faiss" with its settings. ignore_identical_ids: a hit whose id is the query's is dropped;
    None: as the datasets of queries=own say, else it is kept.
    """

    index: str
    queries: str = "own"
    top_k: int = 100
    backend: str = "exact"
    faiss: FaissSettings = field(default_factory=FaissSettings)
    ignore_identical_ids: bool | None = None
    output: str = "search"

    needs: ClassVar[frozenset[str]] = frozenset({"vectors"})

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {self.backend!r}")
        if self.top_k < 1:
            raise ValueError(f"top_k must be >= 1, got {self.top_k}")
        check_source(self.queries, "queries")

    def reads_datasets(self) -> bool:
        return self.queries in (OWN, POOL)

    def __call__(self, experiment: Experiment) -> dict[str, object]:
        """The table's row."""
        from rankpo.retrieval.dense import check_memory, dense_search
        from rankpo.retrieval.embeddings import Embeddings, TextList, cached_embeddings
        from rankpo.runs import processes
        from rankpo.tasks.encode import vector_model

        session = self.open(experiment)
        logger, device = session.logger, session.device
        corpus = Embeddings(Path(self.index))
        queries = dict(open_source(self.queries, "query", experiment.datasets).texts())
        if not queries:
            raise ConfigError([f"task.queries={self.queries} holds no query"])
        self._check_names(queries, corpus.ids())
        model = vector_model(experiment, session)
        check_model(corpus, model)
        faiss = self.faiss if self.backend == "faiss" else None
        own_id = self._ignores_identical_ids(experiment.datasets)
        depth = self.top_k + own_id
        size = (len(queries), len(corpus), corpus.encoding.dim, depth)
        memory = check_memory(*size, device, logger.say, faiss)
        texts = TextList(list(queries), list(queries.values()))
        vectors = cached_embeddings(experiment.cache_dir, model, texts, "query", logger.say)
        started = time.monotonic()
        hits = dense_search(vectors, corpus, depth, device, logger.say, faiss=faiss)
        seconds = time.monotonic() - started
        row = {
            "queries": len(queries),
            "documents": len(corpus),
            "backend": self.backend if faiss is None else f"faiss {faiss.kind}",
            "seconds": seconds,
            "recall against exact": hits.recall,
        }
        if logger.main:
            self._write(
                hits, queries, corpus.ids(), own_id, {**row, "checked": hits.checked, "estimated_bytes": memory}
            )
        logger.table([row])
        processes.barrier()
        return row

    def _ignores_identical_ids(self, datasets: Sequence[Dataset]) -> bool:
        """The key, or what the datasets say whose own queries are searched. Raises ConfigError where they differ."""
        from rankpo.data.shape import declared

        if self.ignore_identical_ids is not None or self.queries != OWN:
            return bool(self.ignore_identical_ids)
        judged = [declared(dataset).judgements for dataset in datasets]
        said = {item.ignore_identical_ids for item in judged if item is not None}
        if len(said) > 1:
            raise ConfigError(["datasets differ in ignore_identical_ids; set task.ignore_identical_ids"])
        return said == {True}

    def _check_names(self, queries: Iterable[str], documents: Iterable[str]) -> None:
        """Raises ConfigError, before anything is searched, for ids that run.trec cannot hold."""
        from rankpo.data.readers.trec import check_names

        try:
            check_names(queries, f"task.queries={self.queries}")
            check_names(documents, f"task.index={self.index}")
        except ValueError as error:
            raise ConfigError([str(error)]) from error

    def _write(
        self,
        hits: Hits,
        queries: Mapping[str, str],
        documents: Sequence[str],
        own_id: bool,
        summary: dict[str, object],
    ) -> None:
        from rankpo.data.readers.trec import write_run

        folder = Path(self.output)
        run: dict[str, dict[str, float]] = {}
        with replacing(folder / "hits.jsonl") as temporary, temporary.open("w", encoding="utf-8") as file:
            for (query, text), numbers, scores in zip(queries.items(), hits.numbers, hits.scores, strict=True):
                found = [
                    (documents[number], float(f"{score:.9g}"))
                    for number, score in zip(numbers.tolist(), scores.tolist(), strict=True)
                    if number >= 0 and not (own_id and documents[number] == query)
                ][: self.top_k]
                run[query] = dict(found)
                listed = [{"rank": rank, "id": name, "score": score} for rank, (name, score) in enumerate(found, 1)]
                line = {"query_id": query, "query": text, "hits": listed}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        write_run(folder / "run.trec", run)
        replace_text(
            folder / "search.json",
            json.dumps({**summary, "settings": {**asdict(self), "ignore_identical_ids": own_id}}, indent=1),
        )


def check_model(corpus: Embeddings, model: EmbeddingModel) -> None:
    """Raises ConfigError where queries would be encoded otherwise than the corpus was."""
    from rankpo.models.reference import fingerprint_weights

    if fingerprint_weights(model) != corpus.encoding.model:
        raise ConfigError([f"{corpus.folder} was encoded by another model; set model.load_from to that one"])
    settings = model.settings.to_json()
    different = [name for name in SAME_SETTINGS if settings[name] != corpus.encoding.settings[name]]
    if different:
        wanted = ", ".join(f"model.{name}={corpus.encoding.settings[name]}" for name in different)
        raise ConfigError([f"{corpus.folder} was encoded with other settings; set {wanted}"])
