"""Pipeline from a query's candidates to its negatives; each step counts the removed candidates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from rankpo.mining import filters, sampling
from rankpo.mining.candidates import Found
from rankpo.mining.data import MiningData
from rankpo.mining.settings import MiningSettings

RELAXED, RANDOM = "relaxed", "random"
CACHED_TEXTS = 8192  # Cached sketches of 4 KB each, since a text is a candidate of many queries.


class TooFewError(RuntimeError):
    """Raised for a query with fewer than num_negatives negatives if on_short=error."""


@dataclass(frozen=True)
class Candidates:
    """Candidates of one query, in order. ranks: zero-based, in the source's list. source_scores: NaN for none.

    scores, positives: in the units of score_by. removed: by step.
    """

    numbers: np.ndarray
    ranks: np.ndarray
    source_scores: np.ndarray
    scores: np.ndarray
    positives: np.ndarray
    removed: Mapping[str, int]

    def take(self, places: np.ndarray) -> Candidates:
        kept = {name: getattr(self, name)[places] for name in ("numbers", "ranks", "source_scores", "scores")}
        return replace(self, **kept)


@dataclass(frozen=True)
class Survivors:
    """candidates: those that can be drawn. spare: those in the rank range that fail a threshold, for `relax`."""

    candidates: Candidates
    spare: Candidates


@dataclass(frozen=True, slots=True)  # A corpus has millions of them.
class Negative:
    """rank: zero-based in the source's list, None for a random one. mark: "", "relaxed" or "random"."""

    number: int
    rank: int | None
    source_score: float
    score: float
    cluster: int | None = None
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Mined:
    """A query and its negatives. positives: scores of its positives. margin_from: the score for margins."""

    query: int
    negatives: tuple[Negative, ...]
    positives: np.ndarray
    margin_from: float
    num_candidates: int
    removed: Mapping[str, int]


def exclude(settings: MiningSettings, data: MiningData, query: int, found: Found) -> Candidates:
    """Removes the query's own text, its positives and, if configured, near duplicates of them or of a better one."""
    item = data.queries[query]
    own = data.own_number(item)
    is_own = found.numbers == (-1 if own is None else own)
    is_positive = np.isin(found.numbers, item.positives) & ~is_own
    removed = {"own_text": int(is_own.sum()), "positives": int(is_positive.sum())}
    candidates = Candidates(
        found.numbers, np.arange(len(found.numbers)), found.scores, found.scores, found.positives, removed
    )
    candidates = candidates.take(np.flatnonzero(~is_own & ~is_positive))
    if settings.near_duplicates is None:
        return candidates
    known = [filters.sketch(item.text), *(_sketch(data.texts[number]) for number in item.positives)]
    sets = [_sketch(data.texts[number]) for number in candidates.numbers.tolist()]
    near = filters.near_duplicates(sets, known, settings.near_duplicates)
    return replace(candidates.take(np.flatnonzero(~near)), removed={**removed, "near_duplicates": int(near.sum())})


@lru_cache(maxsize=CACHED_TEXTS)
def _sketch(text: str) -> np.ndarray:
    return filters.sketch(text)


def survive(settings: MiningSettings, candidates: Candidates) -> Survivors:
    """Applies the thresholds and then the rank range."""
    if settings.reorder:
        candidates = candidates.take(np.argsort(-candidates.scores, kind="stable"))
    positive = filters.positive_score(candidates.positives, settings.margin_against)
    highest = filters.ceiling(positive, settings.absolute_margin, settings.relative_margin)
    steps = {
        "max_score": filters.below(candidates.scores, settings.max_score),
        "min_score": filters.above(candidates.scores, settings.min_score),
        "margin": filters.below(candidates.scores, highest),
    }
    removed = dict(candidates.removed)
    passing = np.ones(len(candidates.numbers), dtype=bool)
    for name, allowed in steps.items():
        removed[name] = int((passing & ~allowed).sum())
        passing &= allowed
    retrieved = settings.range_counts == "retrieved"
    ranks = candidates.ranks if retrieved else np.cumsum(passing) - 1
    within = filters.in_range(ranks, settings.range_min, settings.range_max)
    removed["range"] = int((passing & ~within).sum())
    spare_ranks = candidates.ranks if retrieved else np.arange(len(passing))
    spare = ~passing & filters.in_range(spare_ranks, settings.range_min, settings.range_max)
    kept = replace(candidates.take(np.flatnonzero(passing & within)), removed=removed)
    return Survivors(kept, candidates.take(np.flatnonzero(spare)))


@dataclass
class Sampler:
    """Draws negatives query by query, and counts the uses of each text.

    decay: λ of cluster sampling. uses: by text number, over all earlier queries.
    """

    settings: MiningSettings
    data: MiningData
    seed: int
    decay: float = 1.0

    def __post_init__(self) -> None:
        self.uses: Counter[int] = Counter()

    def mine(self, query: int, survivors: Survivors, labels: np.ndarray | None, num_candidates: int) -> Mined:
        """labels: [n] clusters of the survivors, or None. Raises TooFewError with on_short=error."""
        settings = self.settings
        candidates = survivors.candidates
        free = np.array([self._is_free(number) for number in candidates.numbers.tolist()], dtype=bool)
        removed = {**candidates.removed, "max_uses": int((~free).sum())}
        places = np.flatnonzero(free)
        chosen = places[self._draw(query, candidates.take(places), None if labels is None else labels[places])]
        negatives = [_negative(candidates, place, labels) for place in chosen.tolist()]
        short = settings.num_negatives - len(negatives)
        if short > 0 and settings.on_short == "relax":
            spare = [_negative(survivors.spare, p, None, RELAXED) for p in range(len(survivors.spare.numbers))]
            negatives += [negative for negative in spare if self._is_free(negative.number)][:short]
        if short > 0 and settings.on_short == "fill_random":
            negatives += self._at_random(query, short, {negative.number for negative in negatives})
        if short > 0 and settings.on_short == "error":
            name = self.data.queries[query].id
            raise TooFewError(
                f"query {name} has {len(negatives)} of {settings.num_negatives} negatives; "
                "widen mining.top_k or the thresholds, or set mining.on_short=fewer"
            )
        if short > 0 and settings.on_short == "drop":
            negatives = []
        self.uses.update(negative.number for negative in negatives)
        positive = filters.positive_score(candidates.positives, settings.margin_against)
        return Mined(query, tuple(negatives), candidates.positives, positive, num_candidates, removed)

    def _is_free(self, number: int) -> bool:
        return self.settings.max_uses is None or self.uses[number] < self.settings.max_uses

    def _draw(self, query: int, candidates: Candidates, labels: np.ndarray | None) -> np.ndarray:
        """Returns the indices of the drawn candidates, in order."""
        count, settings = len(candidates.numbers), self.settings
        if settings.sampling == "top":
            return np.arange(min(count, settings.num_negatives))
        if settings.sampling == "random":
            log_weights = np.zeros(count)
        elif settings.sampling == "softmax":
            log_weights = candidates.scores / settings.temperature
        else:
            assert labels is not None
            log_weights = sampling.cluster_log_weights(labels, self.decay)
        uniform = sampling.uniforms(count, self.seed, self.data.queries[query].id)
        return sampling.draw(log_weights, settings.num_negatives, uniform)

    def _at_random(self, query: int, count: int, chosen: set[int]) -> list[Negative]:
        item, data = self.data.queries[query], self.data
        hidden = {*item.positives, *chosen, data.own_number(item)}
        size = count + len(hidden)
        while True:
            drawn = sampling.random_rows(size, data.num_candidates, self.seed, item.id).tolist()
            allowed = [number for number in drawn if number not in hidden and self._is_free(number)]
            if len(allowed) >= count or len(drawn) >= data.num_candidates:
                unknown = float("nan")
                return [Negative(number, None, unknown, unknown, mark=RANDOM) for number in allowed[:count]]
            size *= 2


def _negative(candidates: Candidates, place: int, labels: np.ndarray | None, mark: str = "") -> Negative:
    return Negative(
        int(candidates.numbers[place]),
        int(candidates.ranks[place]),
        float(candidates.source_scores[place]),
        float(candidates.scores[place]),
        None if labels is None else int(labels[place]),
        mark,
    )


def mine_all(
    settings: MiningSettings,
    data: MiningData,
    candidates: Iterable[Candidates],
    vectors: Callable[[np.ndarray], np.ndarray] | None,
    found: Sequence[Found],
    seed: int,
) -> dict[str, list[Mined]]:
    """Returns mined queries by variant, from one set of candidates. vectors: embeddings by text number, for clusters."""
    samplers = {name: Sampler(settings, data, seed, decay) for name, decay in settings.variants.items()}
    mined: dict[str, list[Mined]] = {name: [] for name in samplers}
    for query, item in enumerate(candidates):
        survivors = survive(settings, item)
        labels = None
        if settings.sampling == "cluster" and vectors is not None:
            labels = sampling.cluster_labels(vectors(survivors.candidates.numbers), settings.num_clusters, seed)
        for name, sampler in samplers.items():
            mined[name].append(sampler.mine(query, survivors, labels, len(found[query].numbers)))
    return mined
