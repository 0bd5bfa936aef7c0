"""Relevance of candidates: the one rule that says which of them are positives, for every reader, loader and task.

Records state it in one of three ways: by lists of positives and negatives, or a preferred passage; by labels of 0 and
1; or by a threshold, the dataset's `relevant_from`, on labels of any other kind. Grades, a teacher's scores and places
in a ranking say nothing about it by themselves: what needs positives then asks for the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rankpo.errors import InputError
from rankpo.types import Example

RELEVANT, IRRELEVANT, UNKNOWN = 1, 0, -1  # of `ExampleTable.stated`


class UnknownRelevance(InputError, ValueError):
    """The records do not say which candidates are relevant, and something needs to know."""

    def __init__(self, dataset: str, wanted_by: str, labels: Sequence[float] = ()) -> None:
        found = f"labels from {min(labels):g} to {max(labels):g}" if len(labels) else "labels"
        key = f"datasets.{dataset}.relevant_from"
        super().__init__(
            f"{key} is not set: {wanted_by} needs to know which candidates are relevant, and the records give {found} "
            f"without lists of positives and negatives; set {key} to the smallest label that is relevant"
        )


def binary(labels: Sequence[float]) -> bool:
    """Whether labels are all 0 or 1, and so say themselves which candidates are relevant."""
    return all(label in (0, 1) for label in labels)


def threshold(labels: Sequence[float], relevant_from: float | None) -> tuple[bool, ...] | None:
    """Whether each label is a relevant one, or None without a threshold."""
    return None if relevant_from is None else tuple(label >= relevant_from for label in labels)


def stated(example: Example) -> tuple[bool, ...] | None:
    """Whether each candidate is relevant, or None where the example does not say."""
    if example.relevant is not None:
        return example.relevant
    return tuple(label == 1 for label in example.relevance) if binary(example.relevance) else None


def relevant(example: Example, dataset: str, wanted_by: str) -> tuple[bool, ...]:
    """Whether each candidate is relevant. Raises UnknownRelevance."""
    known = stated(example)
    if known is None:
        raise UnknownRelevance(dataset, wanted_by, example.relevance)
    return known


def completed(stated: np.ndarray, relevance: np.ndarray, dataset: np.ndarray) -> np.ndarray:
    """`stated` [slots] int8 with the unknown ones of each dataset decided where all of their labels are 0 or 1.

    dataset: [slots] numbers. The rule looks at a whole dataset: a list that happens to hold 0 and 1 alone, among lists
    of grades, does not say what is relevant.
    """
    done = stated.copy()
    unknown = stated == UNKNOWN
    graded = np.unique(dataset[unknown & (relevance != 0) & (relevance != 1)])
    decided = unknown & ~np.isin(dataset, graded)
    done[decided] = relevance[decided] == 1
    return done
