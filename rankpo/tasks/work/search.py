"""The work of task=search: the top k of a corpus that task=encode wrote, for every query."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rankpo.data.readers.trec import check_names
from rankpo.data.shape import declared
from rankpo.errors import ConfigError
from rankpo.models.reference import fingerprint_weights
from rankpo.retrieval.corpus import OWN, open_source
from rankpo.retrieval.dense import DenseSearch, Hits
from rankpo.retrieval.embeddings import Embeddings, TextList, cached_embeddings
from rankpo.retrieval.plaid import PlaidSearch, check_installed
from rankpo.retrieval.quantised import QuantisedSearch
from rankpo.retrieval.ragged import RaggedSearch, by_part, make_search, rescored
from rankpo.retrieval.stored import HybridEmbeddings, Stored, open_stored
from rankpo.runs import processes
from rankpo.storage.atomic import replace_text
from rankpo.tasks.search import PARTS
from rankpo.tasks.vector_models import vector_model
from rankpo.tasks.work.first_stage import candidates_of
from rankpo.tasks.work.search_forms import Comparison, check_forms, dense_search
from rankpo.tasks.work.search_results import Asked, check_texts, measured, write_hits

if TYPE_CHECKING:
    from rankpo.config.experiment import Experiment
    from rankpo.data.dataset import Dataset
    from rankpo.models.vectors import GivesVectors
    from rankpo.tasks.search import Search
    from rankpo.tasks.session import Session

SAME_SETTINGS = ("pooling", "normalize", "truncate_dim", "activation", "query_encoder")


def run(task: Search, experiment: Experiment) -> dict[str, object]:
    """Returns the table's row."""
    if task.backend == "plaid":
        check_installed()
    session = task.open(experiment)
    logger = session.logger
    corpus = open_stored(Path(task.index))
    asked = _asked(task, experiment, corpus)
    parts, first_stage = _of_parts(task, corpus), candidates_of(task, experiment, asked.queries, asked.documents)
    model = vector_model(experiment, session)
    check_model(corpus, model)
    check_forms(task, corpus, model, logger.say)
    search = _search(task, model, corpus, asked.depth, session)
    memory = search.check_memory(len(asked.queries), len(corpus), model.typical_size)
    texts = TextList([*asked.queries], [*asked.queries.values()])
    vectors = cached_embeddings(experiment.cache_dir, model, texts, "query", logger.say)
    started = time.monotonic()
    if parts is not None:
        first_stage = by_part(vectors, parts, str(task.candidates), model, task.candidate_depth)
    scored = (model.stored_similarity, asked.depth, session.device)
    hits = search.hits(vectors, corpus) if first_stage is None else rescored(vectors, corpus, first_stage, *scored)
    seconds = time.monotonic() - started
    judged = experiment.datasets if task.queries == OWN else ()
    row: dict[str, object] = {
        "queries": len(asked.queries),
        "documents": len(corpus),
        "backend": _backend(task),
        "seconds": seconds,
        "recall against exact": hits.recall,
        **measured(judged, asked.run_of(hits), task.metrics, logger.say),
    }
    logger.table([row])
    forms: list[dict[str, object]] = []
    if task.forms:
        forms = Comparison(task=task, asked=asked, datasets=judged, session=session).rows(corpus, vectors)
        logger.table(forms)
    if logger.main:
        _write(task, asked, hits, {**row, "forms": forms, **_stored(corpus, hits, memory)})
    processes.barrier()
    return row


def _asked(task: Search, experiment: Experiment, corpus: Stored) -> Asked:
    """Reads the queries and the ids of the corpus. Raises ConfigError if there is no query."""
    queries = dict(open_source(task.queries, "query", experiment.datasets).texts())
    if not queries:
        raise ConfigError([f"task.queries={task.queries} holds no query"])
    names = corpus.ids()
    _check_names(task, queries, names)
    source = open_source(task.corpus, "passage", experiment.datasets) if task.texts else None
    if source is not None:
        check_texts(source, names, f"task.corpus={task.corpus}")
    own_id = _ignores_identical_ids(task, experiment.datasets)
    return Asked(queries=queries, documents=names, top_k=task.top_k, own_id=own_id, source=source)


def _write(task: Search, asked: Asked, hits: Hits, summary: Mapping[str, object]) -> None:
    folder = Path(task.output)
    write_hits(folder, asked, asked.run_of(hits))
    settings = {**asdict(task), "ignore_identical_ids": asked.own_id}
    replace_text(folder / "search.json", json.dumps({**summary, "settings": settings}, indent=1))


def _stored(corpus: Stored, hits: Hits, memory: int) -> dict[str, object]:
    """The form and the size of an index, for the report, and how it was searched."""
    stored = {"dtype": corpus.encoding.dtype, "MB": corpus.bytes / 1e6}
    return {**stored, "checked": hits.checked, "estimated_bytes": memory}


def _of_parts(task: Search, corpus: Stored) -> HybridEmbeddings | None:
    """The corpus for a first stage by a part, None for another first stage. Raises ConfigError for a corpus without parts."""
    if task.candidates not in PARTS:
        return None
    if isinstance(corpus, HybridEmbeddings):
        return corpus
    raise ConfigError(
        [
            f"task.candidates={task.candidates} is a part of a hybrid model, and {corpus.folder} holds "
            f"{corpus.encoding.form} vectors; set task.candidates=bm25 or the file of a TREC run"
        ]
    )


def _search(
    task: Search, model: GivesVectors, corpus: Stored, depth: int, session: Session
) -> DenseSearch | QuantisedSearch | RaggedSearch | PlaidSearch:
    """Searches with the backend of the task. Raises ConfigError if the backend cannot search vectors of this kind."""
    if isinstance(corpus, Embeddings) and not corpus.sparse and task.backend == "exact":
        return dense_search(task, corpus, depth, session)
    if task.backend != "plaid":
        faiss = task.faiss if task.backend == "faiss" else None
        search = make_search(model, depth, session.device, session.logger.say, faiss)
        if task.backend != "inverted":
            return search
        if not isinstance(search, DenseSearch):
            raise ConfigError(
                [f"backend=inverted needs sparse vectors, and kind={model.kind} gives several vectors per text"]
            )
        return replace(search, inverted=True)
    if not model.pools:
        raise ConfigError(
            [f"task.backend=plaid needs token vectors, and kind={model.kind} has none; set task.backend=exact or faiss"]
        )
    return PlaidSearch(top_k=depth, scores=model.stored_similarity, device=session.device, say=session.logger.say)


def _backend(task: Search) -> str:
    if task.candidates is not None:
        return f"{Path(task.candidates).name}, then exact"
    return f"faiss {task.faiss.kind}" if task.backend == "faiss" else task.backend


def _ignores_identical_ids(task: Search, datasets: Sequence[Dataset]) -> bool:
    """task.ignore_identical_ids, or for None the setting of the datasets. Raises ConfigError if datasets differ."""
    if task.ignore_identical_ids is not None or task.queries != OWN:
        return bool(task.ignore_identical_ids)
    judged = [declared(dataset).judgements for dataset in datasets]
    said = {item.ignore_identical_ids for item in judged if item is not None}
    if len(said) > 1:
        raise ConfigError(["datasets differ in ignore_identical_ids; set task.ignore_identical_ids"])
    return said == {True}


def _check_names(task: Search, queries: Iterable[str], documents: Iterable[str]) -> None:
    """Raises ConfigError, before the search, for ids that run.trec cannot hold."""
    try:
        check_names(queries, f"task.queries={task.queries}")
        check_names(documents, f"task.index={task.index}")
    except ValueError as error:
        raise ConfigError([str(error)]) from error


def check_model(corpus: Stored, model: GivesVectors) -> None:
    """Raises ConfigError if queries would be encoded with another model or other settings than the corpus."""
    if fingerprint_weights(model) != corpus.encoding.model:
        raise ConfigError([f"{corpus.folder} was encoded by another model; set model.load_from to that one"])
    settings = model.settings.to_json()
    different = [name for name in SAME_SETTINGS if settings.get(name) != corpus.encoding.settings.get(name)]
    if different:
        wanted = ", ".join(f"model.{name}={corpus.encoding.settings[name]}" for name in different)
        raise ConfigError([f"{corpus.folder} was encoded with other settings; set {wanted}"])
