"""Rankings for pairs: from a TREC run, or from a search with a bi-encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rankpo.data.readers.trec import order, read_run
from rankpo.errors import ConfigError
from rankpo.retrieval.embeddings import TextList, cached_embeddings
from rankpo.retrieval.ragged import make_search

if TYPE_CHECKING:
    from rankpo.models.vectors import GivesVectors

Ranking = tuple[list[str], list[float]]


def searched(
    model: GivesVectors,
    queries: Mapping[str, str],
    texts: Mapping[str, str],
    top_k: int,
    cache_dir: Path,
    say: Callable[[str], None],
) -> dict[str, Ranking]:
    """{query id: (ids, scores), best first} by exact search; embeddings are cached under `cache_dir`.

    A document with the query's id is excluded, as in `evaluation.rules`, since it is the query itself.
    """
    ids = list(texts)
    search = make_search(model, min(top_k + 1, len(ids)), model.device, say)
    search.check_memory(len(queries), len(ids), model.stored_dim)
    corpus = cached_embeddings(cache_dir, model, TextList(ids, list(texts.values())), "passage", say)
    asked = TextList(list(queries), list(queries.values()))
    vectors = cached_embeddings(cache_dir, model, asked, "query", say)
    hits = search.hits(vectors, corpus)
    found: dict[str, Ranking] = {}
    for query, numbers, scores in zip(queries, hits.numbers.tolist(), hits.scores.tolist(), strict=True):
        named = [(ids[number], score) for number, score in zip(numbers, scores, strict=True) if number >= 0]
        kept = [(name, score) for name, score in named if name != query][:top_k]
        found[query] = [name for name, _ in kept], [score for _, score in kept]
    return found


def of_run(
    path: str, queries: Mapping[str, str], texts: Mapping[str, str], top_k: int, say: Callable[[str], None]
) -> dict[str, Ranking]:
    """{query id: (ids, scores), best first} of a TREC run. Raises ConfigError for a run that shares no query or text."""
    found: dict[str, Ranking] = {}
    unknown = 0
    run = read_run(path)
    for query, scores in run.items():
        if query not in queries:
            unknown += 1
            continue
        ids = [name for name in order(scores) if name in texts and name != query][:top_k]
        found[query] = ids, [scores[name] for name in ids]
    if not any(len(ids) > 1 for ids, _ in found.values()):
        raise ConfigError([f"task.run={path} shares no query with two documents with task.queries and task.corpus"])
    if unknown:
        say(f"{path}: {unknown} of its queries are not among task.queries and are left out")
    return found
