"""Preference pairs from graded judgements: of two relevant candidates, the one with the higher grade is preferred.

With these pairs, one graded dataset can train both stages: stage one learns which candidates are relevant, and stage
two learns from their grades instead of a judge. Alignment and retention can then be measured on real data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import combinations

import numpy as np

from rankpo.data.random_keys import random_keys, text_key
from rankpo.data.relevance import relevant
from rankpo.types import Example

GRADES = "grades"


def check_preferences(preferences: str | None, pairs_per_query: int) -> None:
    """Raises ValueError if a value of the keys `preferences` or `pairs_per_query` is invalid."""
    if preferences not in (None, GRADES):
        raise ValueError(f"preferences must be grades or null, got {preferences!r}")
    if pairs_per_query < 1:
        raise ValueError(f"pairs_per_query must be >= 1, got {pairs_per_query}")


def as_preferences(
    examples: Iterable[Example], preferences: str | None, pairs_per_query: int, name: str
) -> Iterator[Example]:
    """Yields the pairs of each example, or the examples if preferences is None. name: the dataset, for error messages.

    Raises ValueError if no query has two relevant candidates of different grades.
    """
    if preferences is None:
        yield from examples
        return
    count = queries = 0
    for example in examples:
        queries += 1
        for pair in grade_pairs(example, pairs_per_query, name):
            count += 1
            yield pair
    if queries and not count:
        raise ValueError(
            f"datasets.{name}.preferences=grades: no query has two relevant candidates of different grades; lower "
            "relevant_from, or remove preferences"
        )


def grade_pairs(example: Example, pairs_per_query: int, name: str) -> list[Example]:
    """Returns up to pairs_per_query random pairs of an example. The preferred candidate comes first.

    The id of the example seeds the random choice, so that the same data always gives the same pairs.
    The pairs have no confidence, since grades do not state one.

    name: the dataset, for error messages. Raises UnknownRelevance if the relevance of candidates is unknown.
    """
    grades = example.grades or example.relevance
    chosen = relevant(example, name, "preferences=grades")
    numbers = [number for number, flag in enumerate(chosen) if flag]
    pairs = [
        (first, second) if grades[first] > grades[second] else (second, first)
        for first, second in combinations(numbers, 2)
        if grades[first] != grades[second] and example.candidates[first] != example.candidates[second]
    ]
    order = np.argsort(random_keys(max(1, len(pairs)), 0, text_key(example.id)), kind="stable")[: len(pairs)]
    return [
        replace(
            example,
            candidates=tuple(example.candidates[place] for place in pairs[drawn]),
            relevance=(1.0, 0.0),
            id=f"{example.id}/{number}",
            teacher=None,
            relevant=(True, False),
            grades=None,
        )
        for number, drawn in enumerate(order[:pairs_per_query].tolist())
    ]
