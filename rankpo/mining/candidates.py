"""Candidates of each query from a search, a file or chance, with scores where the source gives some."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rankpo.errors import ConfigError
from rankpo.mining.data import MiningData
from rankpo.mining.sampling import random_rows
from rankpo.mining.scores import DenseScores
from rankpo.mining.settings import MiningSettings
from rankpo.retrieval.bm25 import Bm25Index, Tokenize
from rankpo.retrieval.dense import Hits, dense_search
from rankpo.retrieval.fusion import fuse

Say = Callable[[str], None]


@dataclass(frozen=True)
class Found:
    """Of one query. numbers: [n] texts, best first. scores: [n], NaN where the source has none.

    positives: scores of the query's positives in the same units, NaN where the source has none.
    """

    numbers: np.ndarray
    scores: np.ndarray
    positives: np.ndarray


@dataclass(frozen=True)
class Searched:
    """Candidates of every query; recall: of an approximate index against exact search, or None."""

    found: Sequence[Found]
    recall: float | None = None


def search(
    settings: MiningSettings,
    data: MiningData,
    dense: DenseScores | None,
    tokenize: Tokenize | None,
    device: torch.device,
    seed: int,
    say: Say,
) -> Searched:
    """The candidates of the configured source. The same on every rank."""
    if settings.source == "run":
        return Searched(_from_run(settings, data, say))
    if settings.source == "random":
        return Searched([_at_random(settings, data, query, seed) for query in range(len(data.queries))])
    if settings.source == "bm25":
        return Searched(_bm25(settings, data, tokenize, say))
    assert dense is not None
    hits = _dense(settings, data, dense, device, say)
    by_embedding = [_of_hits(hits, data, dense, query) for query in range(len(data.queries))]
    if settings.source == "dense":
        return Searched(by_embedding, hits.recall)
    by_words = _bm25(settings, data, tokenize, say)
    pairs = zip(by_embedding, by_words, strict=True)
    return Searched([_fused(settings, *pair) for pair in pairs], hits.recall)


def _dense(settings: MiningSettings, data: MiningData, dense: DenseScores, device: torch.device, say: Say) -> Hits:
    faiss = settings.faiss if settings.backend == "faiss" else None
    corpus = dense.encode()
    return dense_search(
        dense.queries, corpus, settings.top_k, device, say, faiss=faiss, num_documents=data.num_candidates
    )


def _of_hits(hits: Hits, data: MiningData, dense: DenseScores, query: int) -> Found:
    kept = hits.numbers[query] >= 0
    positives = dense.scores(query, np.asarray(data.queries[query].positives))
    return Found(hits.numbers[query][kept], hits.scores[query][kept].astype(np.float64), positives)


def _bm25(settings: MiningSettings, data: MiningData, tokenize: Tokenize | None, say: Say) -> list[Found]:
    """The index holds positives that the corpus lacks, so that they have scores; they are never candidates."""
    say(f"indexing {len(data.texts)} texts for BM25")
    index = Bm25Index(data.texts, settings.bm25, tokenize)
    results = []
    for query in data.queries:
        scores = index.scores(query.text).astype(np.float64)
        corpus = scores[: data.num_candidates]
        numbers = _largest(corpus, settings.top_k)
        numbers = numbers[corpus[numbers] > 0]  # a text without any word of the query was not found
        results.append(Found(numbers, corpus[numbers], scores[query.positives]))
    return results


def _largest(scores: np.ndarray, depth: int) -> np.ndarray:
    """Numbers of the `depth` largest scores, best first, ties by number upwards."""
    if depth < len(scores):
        border = np.partition(scores, len(scores) - depth)[len(scores) - depth]
        numbers = np.flatnonzero(scores >= border)  # with every tie at the border
    else:
        numbers = np.arange(len(scores))
    return numbers[np.argsort(-scores[numbers], kind="stable")][:depth]


def _fused(settings: MiningSettings, first: Found, second: Found) -> Found:
    weights = [settings.dense_weight, settings.bm25_weight]
    rankings = [(first.numbers, first.scores), (second.numbers, second.scores)]
    numbers, scores = fuse(rankings, weights, settings.fusion)
    unknown = np.full(len(first.positives), np.nan)
    return Found(numbers[: settings.top_k], scores[: settings.top_k], unknown)


def _at_random(settings: MiningSettings, data: MiningData, query: int, seed: int) -> Found:
    numbers = random_rows(settings.top_k, data.num_candidates, seed, data.queries[query].id)
    return Found(numbers, np.full(len(numbers), np.nan), np.full(len(data.queries[query].positives), np.nan))


def _from_run(settings: MiningSettings, data: MiningData, say: Say) -> list[Found]:
    """Raises ConfigError where the run and the data share no query or no document."""
    from rankpo.data.readers.trec import order, read_run

    assert settings.run is not None
    run = read_run(settings.run)
    numbers = {identity: number for number, identity in enumerate(data.ids[: data.num_candidates])}
    results, unknown = [], 0
    for query in data.queries:
        scores = run.get(query.id, {})
        listed = [name for name in order(scores) if name in numbers][: settings.top_k]
        unknown += len(scores) - sum(name in numbers for name in scores)
        candidates = np.array([numbers[name] for name in listed], dtype=np.int64)
        values = np.array([scores[name] for name in listed], dtype=np.float64)
        known = [scores.get(data.ids[number], np.nan) for number in query.positives]
        results.append(Found(candidates, values, np.array(known, dtype=np.float64)))
    missing = sum(query.id not in run for query in data.queries)
    if not any(len(found.numbers) for found in results):
        raise ConfigError(
            [f"mining.run={settings.run} and the data share no query and document by id (such as {data.queries[0].id})"]
        )
    if missing or unknown:
        say(f"{settings.run}: {missing} queries have no line in it, {unknown} of its documents are not in the corpus")
    return results


def gather_numbers(data: MiningData, found: Sequence[Found]) -> np.ndarray:
    """Numbers of all texts that some step may look at, sorted: candidates and positives."""
    parts = [item.numbers for item in found]
    parts += [np.asarray(query.positives, dtype=np.int64) for query in data.queries]
    return np.unique(np.concatenate(parts))
