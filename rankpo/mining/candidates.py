"""Candidates of each query from a search, a file or random draws, with scores if the source has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import overload

import numpy as np
import torch

from rankpo.data.readers.trec import order, read_run
from rankpo.errors import ConfigError
from rankpo.mining.data import MiningData
from rankpo.mining.sampling import random_rows
from rankpo.mining.scores import DenseScores
from rankpo.mining.settings import MiningSettings
from rankpo.retrieval.bm25 import Bm25Index, Tokenize
from rankpo.retrieval.dense import DenseSearch, Hits
from rankpo.retrieval.fusion import fuse
from rankpo.retrieval.ragged import RaggedSearch, make_search

Say = Callable[[str], None]


@dataclass(frozen=True)
class Found:
    """Candidates of one query. numbers: [n] texts, best first. scores: [n], NaN if the source has no scores.

    positives: scores of the query's positives in the same units, NaN if the source has no scores.
    """

    numbers: np.ndarray
    scores: np.ndarray
    positives: np.ndarray


class FoundByHits(Sequence[Found]):
    """Candidates by embeddings, made when they are asked for: of 100,000 queries, the arrays of hits alone are kept."""

    def __init__(self, hits: Hits, data: MiningData, dense: DenseScores) -> None:
        self.hits = hits
        self.ends = np.cumsum([len(query.positives) for query in data.queries])
        scores = (dense.scores(n, np.asarray(query.positives)) for n, query in enumerate(data.queries))
        self.positives = np.fromiter(chain.from_iterable(scores), dtype=np.float64, count=int(self.ends[-1]))

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, query: int) -> Found: ...
    @overload
    def __getitem__(self, query: slice) -> Sequence[Found]: ...
    def __getitem__(self, query: int | slice) -> Found | Sequence[Found]:
        if isinstance(query, slice):
            return [self[number] for number in range(*query.indices(len(self)))]
        if not 0 <= query < len(self):
            raise IndexError(query)
        kept = self.hits.numbers[query] >= 0
        start = int(self.ends[query - 1]) if query else 0
        return Found(
            numbers=self.hits.numbers[query][kept],
            scores=self.hits.scores[query][kept].astype(np.float64),
            positives=self.positives[start : int(self.ends[query])],
        )


@dataclass(frozen=True)
class Searched:
    """Candidates of every query. recall: of an approximate index against exact search, or None."""

    found: Sequence[Found]
    recall: float | None = None


@dataclass(frozen=True, kw_only=True)
class Search:
    """The search of the configured source, the same on every rank.

    dense: embeddings, for the sources that need them. tokenize: words of a text for BM25; None uses BM25's default. seed: of
    random candidates.
    """

    settings: MiningSettings
    data: MiningData
    dense: DenseScores | None
    tokenize: Tokenize | None
    device: torch.device
    seed: int
    say: Say

    def run(self) -> Searched:
        """The candidates of every query."""
        settings = self.settings
        if settings.source == "run":
            return Searched(self._from_run())
        if settings.source == "random":
            return Searched([self._at_random(query) for query in range(len(self.data.queries))])
        if settings.source == "bm25":
            return Searched(self._bm25())
        assert self.dense is not None
        hits = self.dense_search.hits(self.dense.queries, self.dense.encode(), self.data.num_candidates)
        by_embedding = FoundByHits(hits, self.data, self.dense)
        if settings.source == "dense":
            return Searched(by_embedding, hits.recall)
        pairs = zip(by_embedding, self._bm25(), strict=True)
        return Searched([_fused(settings, *pair) for pair in pairs], hits.recall)

    @property
    def dense_search(self) -> DenseSearch | RaggedSearch:
        settings = self.settings
        faiss = settings.faiss if settings.backend == "faiss" else None
        assert self.dense is not None
        return make_search(self.dense.model, settings.top_k, self.device, self.say, faiss)

    def check_memory(self, dim: int) -> None:
        """Raises TooLargeError if a search of vectors does not fit into memory. dim: dimensions of a vector."""
        if self.settings.source in ("dense", "fused"):
            self.dense_search.check_memory(len(self.data.queries), self.data.num_candidates, dim)

    def _bm25(self) -> list[Found]:
        """Searches with BM25. The index also contains positives outside the corpus to score them, but not as candidates."""
        settings, data = self.settings, self.data
        self.say(f"indexing {len(data.texts)} texts for BM25")
        index = Bm25Index(data.texts, settings.bm25, self.tokenize)
        results = []
        for query in data.queries:
            scores = index.scores(query.text).astype(np.float64)
            corpus = scores[: data.num_candidates]
            numbers = _largest(corpus, settings.top_k)
            numbers = numbers[corpus[numbers] > 0]  # A score of 0 means that the text has no word of the query.
            results.append(Found(numbers, corpus[numbers], scores[query.positives]))
        return results

    def _at_random(self, query: int) -> Found:
        item = self.data.queries[query]
        numbers = random_rows(self.settings.top_k, self.data.num_candidates, self.seed, item.id)
        return Found(numbers, np.full(len(numbers), np.nan), np.full(len(item.positives), np.nan))

    def _from_run(self) -> list[Found]:
        """Raises ConfigError if the run and the data share no query or no document."""
        settings, data = self.settings, self.data
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
        if not any(len(found.numbers) for found in results):
            example = data.queries[0].id
            raise ConfigError(
                [f"mining.run={settings.run} and the data have no query and document id in common (such as {example})"]
            )
        missing = sum(query.id not in run for query in data.queries)
        if missing or unknown:
            self.say(
                f"{settings.run}: it lacks {missing} queries, and {unknown} of its documents are not in the corpus"
            )
        return results


def _largest(scores: np.ndarray, depth: int) -> np.ndarray:
    """Numbers of the `depth` largest scores, best first, ties by ascending number."""
    if depth < len(scores):
        border = np.partition(scores, len(scores) - depth)[len(scores) - depth]
        numbers = np.flatnonzero(scores >= border)  # Includes every tie at the border.
    else:
        numbers = np.arange(len(scores))
    return numbers[np.argsort(-scores[numbers], kind="stable")][:depth]


def _fused(settings: MiningSettings, first: Found, second: Found) -> Found:
    weights = [settings.dense_weight, settings.bm25_weight]
    rankings = [(first.numbers, first.scores), (second.numbers, second.scores)]
    numbers, scores = fuse(rankings, weights, settings.fusion)
    unknown = np.full(len(first.positives), np.nan)
    return Found(numbers[: settings.top_k], scores[: settings.top_k], unknown)


def gather_numbers(data: MiningData, found: Sequence[Found]) -> np.ndarray:
    """Returns the sorted numbers of all candidates and positives, which later steps may use."""
    used = np.zeros(len(data.texts), dtype=bool)
    for item, query in zip(found, data.queries, strict=True):
        used[item.numbers] = True
        used[query.positives] = True
    return np.flatnonzero(used)
