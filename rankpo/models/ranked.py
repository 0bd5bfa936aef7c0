"""Ranked documents of a query, and pairs of texts: the arguments and results of the kinds' public methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NotRequired, TypedDict

Pair = tuple[str, str]


class Ranked(TypedDict):
    """A document in the result of `rank`. corpus_id: its index in the given list. text: with return_documents=True."""

    corpus_id: int
    score: float
    text: NotRequired[str]


class OrdersLists(ABC):
    """A model that orders whole lists, without scores of single documents."""

    @abstractmethod
    def order_of(self, query: str, candidates: Sequence[str]) -> list[int]:
        """Returns the positions of a query's candidates, best first."""


def by_score(
    scores: Sequence[float], documents: Sequence[str], top_k: int | None, return_documents: bool
) -> list[Ranked]:
    """Returns at most `top_k` documents, best first, ties in the given order. scores: one for each document."""
    order = sorted(range(len(documents)), key=lambda index: -scores[index])  # stable
    return [record(index, scores[index], documents, return_documents) for index in order[:top_k]]


def record(index: int, score: float, documents: Sequence[str], return_documents: bool) -> Ranked:
    """The record of one document."""
    found = Ranked(corpus_id=index, score=float(score))
    if return_documents:
        found["text"] = documents[index]
    return found


def pairs_of(query: str, documents: Sequence[str]) -> list[Pair]:
    """Returns the query paired with each document. Raises TypeError if `documents` is a string."""
    if isinstance(documents, str):
        raise TypeError("documents must be a list of strings, got one string")
    return [(query, document) for document in documents]


def checked_pairs(pairs: Pair | Sequence[Pair]) -> tuple[list[Pair], bool]:
    """Returns the pairs as a list, and whether a single pair was given.

    Raises TypeError with the index for values other than pairs of strings, and ValueError for an empty query.
    """
    if isinstance(pairs, str):
        raise TypeError("pairs must be (query, document) or a list of such pairs, got one string")
    if len(pairs) == 2 and all(isinstance(item, str) for item in pairs):
        return [_pair(pairs, 0)], True
    return [_pair(pair, index) for index, pair in enumerate(pairs)], False


def _pair(value: object, index: int) -> Pair:
    if not isinstance(value, tuple | list) or len(value) != 2 or not all(isinstance(item, str) for item in value):
        raise TypeError(f"pairs[{index}] must be two strings (query, document), got {value!r}")
    if not value[0].strip():
        raise ValueError(f"pairs[{index}]: the query is empty")
    return value[0], value[1]
