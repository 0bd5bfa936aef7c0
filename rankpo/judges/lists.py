"""Short lists of passages of a ranking for a judge, drawn from (seed, query id)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from rankpo.data.random_keys import permutation, text_key
from rankpo.judges.orders import MAX_PASSAGES
from rankpo.judges.pairs import Pair


@dataclass(frozen=True)
class Shortlist:
    """Passages of one query, in the order in which they are shown. ranks: in the ranking, from 1."""

    query_id: str
    ids: tuple[str, ...]
    ranks: tuple[int, ...]

    def pairs(self) -> list[Pair]:
        """All pairs of the passages."""
        places = combinations(zip(self.ids, self.ranks, strict=True), 2)
        return [Pair(self.query_id, id1, id2, rank1, rank2) for (id1, rank1), (id2, rank2) in places]


@dataclass(frozen=True, kw_only=True)
class ListSettings:
    """top_k: ranks that take part. size: passages of a list. per_query: lists of each query, which share no passage."""

    top_k: int = 100
    size: int = 8
    per_query: int = 1

    def __post_init__(self) -> None:
        if not 2 <= self.size <= MAX_PASSAGES:
            raise ValueError(f"size must be in 2 to {MAX_PASSAGES}, got {self.size}")
        if self.top_k < 2:
            raise ValueError(f"top_k must be >= 2, got {self.top_k}")
        if self.per_query < 1:
            raise ValueError(f"per_query must be >= 1, got {self.per_query}")


def draw_lists(
    settings: ListSettings,
    query_id: str,
    ranking: Sequence[str],
    texts: Mapping[str, str],
    seed: int,
    key: Callable[[str], bytes],
) -> list[Shortlist]:
    """Up to per_query lists of a ranking (ids, best first), in a random order of passages.

    Passages without a text do not take part. Of passages with equal texts (by `key`), the best one does. The last list of a short ranking may be shorter
    than `size`; a list has two passages at least.
    """
    first: dict[bytes, int] = {}
    for place, identity in enumerate(ranking[: settings.top_k]):
        if identity in texts:
            first.setdefault(key(texts[identity]), place)
    places = list(first.values())
    shuffled = [places[number] for number in permutation(len(places), seed, text_key(query_id)).tolist()]
    size = settings.size
    chunks = [shuffled[start : start + size] for start in range(0, len(shuffled), size)][: settings.per_query]
    return [
        Shortlist(query_id, tuple(ranking[place] for place in chunk), tuple(place + 1 for place in chunk))
        for chunk in chunks
        if len(chunk) > 1
    ]
