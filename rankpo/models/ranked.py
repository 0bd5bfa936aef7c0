"""Ranked documents of a query, and pairs of texts: what the public methods of all kinds take and give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NotRequired, TypedDict

Pair = tuple[str, str]


class Ranked(TypedDict):
    """A document of `rank`. corpus_id: its place in the given list. text: with return_documents=True."""

    corpus_id: int
    score: float
    text: NotRequired[str]


def by_score(
    scores: Sequence[float], documents: Sequence[str], top_k: int | None, return_documents: bool
) -> list[Ranked]:
    """The documents, best first, ties in the given order; at most `top_k`. scores: one for each document."""
    order = sorted(range(len(documents)), key=lambda index: -scores[index])  # stable
    return [record(index, scores[index], documents, return_documents) for index in order[:top_k]]


def record(index: int, score: float, documents: Sequence[str], return_documents: bool) -> Ranked:
    """The record of one document."""
    found = Ranked(corpus_id=index, score=float(score))
    if return_documents:
        found["text"] = documents[index]
    return found


def pairs_of(query: str, documents: Sequence[str]) -> list[Pair]:
    """The query with each document. Raises TypeError where the documents are one text."""
    if isinstance(documents, str):
        raise TypeError("documents must be a list of texts, got one text")
    return [(query, document) for document in documents]


def checked_pairs(pairs: Pair | Sequence[Pair]) -> tuple[list[Pair], bool]:
    """The pairs as a list, and whether one pair was given instead of a list.

    Raises TypeError naming the place of anything that is not a pair of texts, ValueError for an empty query.
    """
    if isinstance(pairs, str):
        raise TypeError("pairs must be (query, document) or a list of such pairs, got one text")
    if len(pairs) == 2 and all(isinstance(item, str) for item in pairs):
        return [_pair(pairs, 0)], True
    return [_pair(pair, index) for index, pair in enumerate(pairs)], False


def _pair(value: object, index: int) -> Pair:
    if not isinstance(value, tuple | list) or len(value) != 2 or not all(isinstance(item, str) for item in value):
        raise TypeError(f"pairs[{index}] must be two texts (query, document), got {value!r}")
    if not value[0].strip():
        raise ValueError(f"pairs[{index}]: the query is empty")
    return value[0], value[1]
