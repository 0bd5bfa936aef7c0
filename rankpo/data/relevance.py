"""Relevance of candidates: the rule that determines positives for every reader, loader and task.

Records state relevance in one of three ways: by lists of positives and negatives or a preferred passage, by labels 0 and
1, or by the dataset's `relevant_from`, a threshold on any other labels. Grades, teacher scores and ranks alone do not
determine relevance, so a consumer of positives raises UnknownRelevance without the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rankpo.errors import InputError
from rankpo.types import Example

RELEVANT, IRRELEVANT, UNKNOWN = 1, 0, -1  # The values of `ExampleTable.stated`.


class UnknownRelevance(InputError, ValueError):
    """Raised if the relevance of candidates is needed and the records do not state it.

    alternative: a setting that trains without relevance, for the end of the message.
    """

    def __init__(
        self, dataset: str, wanted_by: str, labels: Sequence[float] = (), alternative: str | None = None
    ) -> None:
        found = f"labels from {min(labels):g} to {max(labels):g}" if len(labels) else "labels"
        key = f"datasets.{dataset}.relevant_from"
        super().__init__(
            f"{key} is not set: {wanted_by} needs to know which candidates are relevant, and the records give {found} "
            f"without lists of positives and negatives; set {key} to the smallest label that is relevant"
            f"{f', or {alternative}' if alternative else ''}"
        )


def binary(labels: Sequence[float]) -> bool:
    """Whether all labels are 0 or 1, which states the relevance of candidates."""
    return all(label in (0, 1) for label in labels)


def threshold(labels: Sequence[float], relevant_from: float | None) -> tuple[bool, ...] | None:
    """Whether each label is relevant, or None without a threshold."""
    return None if relevant_from is None else tuple(label >= relevant_from for label in labels)


def stated(example: Example) -> tuple[bool, ...] | None:
    """Whether each candidate is relevant, or None if the example does not state it."""
    if example.relevant is not None:
        return example.relevant
    return tuple(label == 1 for label in example.relevance) if binary(example.relevance) else None


def relevant(example: Example, dataset: str, wanted_by: str) -> tuple[bool, ...]:
    """Whether each candidate is relevant. Raises UnknownRelevance if the example does not state it."""
    known = stated(example)
    if known is None:
        raise UnknownRelevance(dataset, wanted_by, example.relevance)
    return known


def completed(stated: np.ndarray, relevance: np.ndarray, dataset: np.ndarray) -> np.ndarray:
    """`stated` [slots] int8, where unknown values of a dataset are replaced if all of their labels are 0 or 1.

    dataset: [slots] indices of datasets. The rule considers a whole dataset, because a list of grades can contain only 0
    and 1 by chance.
    """
    done = stated.copy()
    unknown = stated == UNKNOWN
    graded = np.unique(dataset[unknown & (relevance != 0) & (relevance != 1)])
    decided = unknown & ~np.isin(dataset, graded)
    done[decided] = relevance[decided] == 1
    return done
