"""The rankings that pairs are drawn from: a TREC run, or a search with the model of the config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from rankpo.errors import ConfigError

if TYPE_CHECKING:
    from rankpo.config.build import Experiment

Ranking = tuple[list[str], list[float]]


def rankings(
    experiment: Experiment,
    run: str | None,
    queries: Mapping[str, str],
    texts: Mapping[str, str],
    top_k: int,
    say: Callable[[str], None],
) -> dict[str, Ranking]:
    """{query id: (ids, scores), best first}. Raises ConfigError for a run that knows none of the queries or texts."""
    if run is not None:
        return _of_run(run, queries, texts, top_k, say)
    from rankpo.retrieval.dense import check_memory, dense_search
    from rankpo.retrieval.embeddings import TextList, cached_embeddings
    from rankpo.runs import processes
    from rankpo.tasks.encode import embedding_model

    accelerator = processes.make_accelerator()
    model = embedding_model(experiment, accelerator.device, say)
    check_memory(len(queries), len(texts), model.dim, top_k, accelerator.device, say, None)
    ids = list(texts)
    corpus = cached_embeddings(experiment.cache_dir, model, TextList(ids, list(texts.values())), "passage", say)
    asked = TextList(list(queries), list(queries.values()))
    vectors = cached_embeddings(experiment.cache_dir, model, asked, "query", say)
    hits = dense_search(vectors, corpus, min(top_k, len(ids)), accelerator.device, say)
    found: dict[str, Ranking] = {}
    for query, numbers, scores in zip(queries, hits.numbers.tolist(), hits.scores.tolist(), strict=True):
        kept = [(ids[number], score) for number, score in zip(numbers, scores, strict=True) if number >= 0]
        found[query] = [name for name, _ in kept], [score for _, score in kept]
    return found


def _of_run(
    path: str, queries: Mapping[str, str], texts: Mapping[str, str], top_k: int, say: Callable[[str], None]
) -> dict[str, Ranking]:
    from rankpo.data.readers.trec import read_run
    from rankpo.evaluation.metrics import order

    found: dict[str, Ranking] = {}
    unknown = 0
    run = read_run(path)
    for query, scores in run.items():
        if query not in queries:
            unknown += 1
            continue
        ids = [name for name in order(scores) if name in texts][:top_k]
        found[query] = ids, [scores[name] for name in ids]
    if not any(len(ids) > 1 for ids, _ in found.values()):
        raise ConfigError([f"task.run={path} shares no query with two documents with task.queries and task.corpus"])
    if unknown:
        say(f"{path}: {unknown} of its queries are not among task.queries and are left out")
    return found
