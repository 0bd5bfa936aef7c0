"""The work of task=search: the top k of a corpus that task=encode wrote, for every query."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rankpo.data.readers.trec import check_names, write_run
from rankpo.data.shape import declared
from rankpo.errors import ConfigError
from rankpo.models.reference import fingerprint_weights
from rankpo.retrieval.corpus import OWN, open_source
from rankpo.retrieval.dense import DenseSearch, Hits
from rankpo.retrieval.embeddings import TextList, cached_embeddings
from rankpo.retrieval.plaid import PlaidSearch, check_installed
from rankpo.retrieval.ragged import RaggedSearch, by_part, make_search, rescored
from rankpo.retrieval.stored import HybridEmbeddings, Stored, open_stored
from rankpo.runs import processes
from rankpo.storage.atomic import replace_text, replacing
from rankpo.tasks.search import PARTS
from rankpo.tasks.vector_models import vector_model
from rankpo.tasks.work.first_stage import candidates_of

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
    queries = dict(open_source(task.queries, "query", experiment.datasets).texts())
    if not queries:
        raise ConfigError([f"task.queries={task.queries} holds no query"])
    names = corpus.ids()
    _check_names(task, queries, names)
    parts = _of_parts(task, corpus)
    first_stage = candidates_of(task, experiment, queries, names) if task.first_stage_of_texts else None
    model = vector_model(experiment, session)
    check_model(corpus, model)
    own_id = _ignores_identical_ids(task, experiment.datasets)
    depth = task.top_k + own_id
    search = _search(task, model, depth, session)
    memory = search.check_memory(len(queries), len(corpus), model.typical_size)
    texts = TextList([*queries], [*queries.values()])
    vectors = cached_embeddings(experiment.cache_dir, model, texts, "query", logger.say)
    started = time.monotonic()
    if parts is not None:
        first_stage = by_part(vectors, parts, str(task.candidates), model, task.candidate_depth)
    scored = (model.stored_similarity, depth, session.device)
    hits = search.hits(vectors, corpus) if first_stage is None else rescored(vectors, corpus, first_stage, *scored)
    row = {
        "queries": len(queries),
        "documents": len(corpus),
        "backend": _backend(task),
        "seconds": time.monotonic() - started,
        "recall against exact": hits.recall,
    }
    if logger.main:
        summary = {**row, "checked": hits.checked, "estimated_bytes": memory}
        _write(task, hits, queries, names, own_id, summary)
    logger.table([row])
    processes.barrier()
    return row


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
    task: Search, model: GivesVectors, depth: int, session: Session
) -> DenseSearch | RaggedSearch | PlaidSearch:
    """Searches with the backend of the task. Raises ConfigError if the backend cannot search vectors of this kind."""
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


def _write(
    task: Search,
    hits: Hits,
    queries: Mapping[str, str],
    documents: Sequence[str],
    own_id: bool,
    summary: dict[str, object],
) -> None:
    folder = Path(task.output)
    run: dict[str, dict[str, float]] = {}
    with replacing(folder / "hits.jsonl") as temporary, temporary.open("w", encoding="utf-8") as file:
        for (query, text), numbers, scores in zip(queries.items(), hits.numbers, hits.scores, strict=True):
            found = [
                (documents[number], float(f"{score:.9g}"))
                for number, score in zip(numbers.tolist(), scores.tolist(), strict=True)
                if number >= 0 and not (own_id and documents[number] == query)
            ][: task.top_k]
            run[query] = dict(found)
            listed = [{"rank": rank, "id": name, "score": score} for rank, (name, score) in enumerate(found, 1)]
            line = {"query_id": query, "query": text, "hits": listed}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    write_run(folder / "run.trec", run)
    replace_text(
        folder / "search.json",
        json.dumps({**summary, "settings": {**asdict(task), "ignore_identical_ids": own_id}}, indent=1),
    )


def check_model(corpus: Stored, model: GivesVectors) -> None:
    """Raises ConfigError if queries would be encoded with another model or other settings than the corpus."""
    if fingerprint_weights(model) != corpus.encoding.model:
        raise ConfigError([f"{corpus.folder} was encoded by another model; set model.load_from to that one"])
    settings = model.settings.to_json()
    different = [name for name in SAME_SETTINGS if settings.get(name) != corpus.encoding.settings.get(name)]
    if different:
        wanted = ", ".join(f"model.{name}={corpus.encoding.settings[name]}" for name in different)
        raise ConfigError([f"{corpus.folder} was encoded with other settings; set {wanted}"])
