"""Parsed records: the parts of an example before it has an id and a place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rankpo.data.readers.fields import BadRecord, Options, Record, numbers


@dataclass(frozen=True)
class Parsed:
    """An example before it has an id and a place. relevant, grades: as in `types.Example`."""

    query: str
    candidates: list[str]
    relevance: list[float]
    teacher: list[float] | None = None
    confidence: float | None = None
    relevant: list[bool] | None = None
    grades: list[float] | None = None


def of_lists(query: str, positives: list[str], negatives: list[str]) -> Parsed:
    """A parsed record of positives and negatives without scores."""
    relevant = [True] * len(positives) + [False] * len(negatives)
    return Parsed(query, positives + negatives, [float(value) for value in relevant], relevant=relevant)


def two_lists(
    query: str,
    positives: list[str],
    negatives: list[str] | None,
    record: Record,
    options: Options,
    names: tuple[str, str] = ("pos", "neg"),
) -> Parsed:
    """A parsed record of positives and negatives; the lists determine relevance, for any scores.

    Scores are used as labels and as teacher scores; with scores_are=teacher, as teacher scores only. A list without
    scores has labels 1 or 0, as in RAG-Retrieval. In a record with scores and without a list of negatives, the one list
    can hold good and bad texts: the scores are then labels, and relevance needs a threshold.
    """
    scores = options.optional(record, "pos_scores"), options.optional(record, "neg_scores")
    if scores[1] is not None and negatives is None:
        raise BadRecord(f"neg_scores without {names[1]}")
    if scores[0] is None and scores[1] is None:
        return of_lists(query, positives, negatives or [])
    given = [None if scores[0] is None else numbers(scores[0], len(positives), "pos_scores", names[0])]
    given.append(None if scores[1] is None else numbers(scores[1], len(negatives or []), "neg_scores", names[1]))
    if negatives is None:
        return labelled(query, list(zip(positives, given[0] or [], strict=True)), options)
    lists = of_lists(query, positives, negatives)
    whole = [values for values, size in zip(given, (len(positives), len(negatives)), strict=True) if size]
    teacher = [value for values in whole for value in values or []]
    known = all(values is not None for values in whole)
    if options.scores_are == "teacher":
        if not known:
            raise BadRecord(f"{names[0]} and {names[1]} must both have scores with scores_are=teacher")
        return replace(lists, teacher=teacher)
    filled = [
        [options.scaled(value) for value in values] if values is not None else [1.0 - end] * size
        for end, (values, size) in enumerate(zip(given, (len(positives), len(negatives)), strict=True))
    ]
    return replace(lists, teacher=teacher if known else None, grades=filled[0] + filled[1])


def labelled(query: str, pairs: Sequence[tuple[str, float]], options: Options) -> Parsed:
    """A parsed record of (text, label) pairs. With scores_are=teacher, the labels are also the teacher scores."""
    candidates, labels = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    relevant = options.relevant(labels)
    if options.scores_are == "teacher":
        return Parsed(query, candidates, labels, labels, relevant=relevant)
    return Parsed(query, candidates, [options.scaled(value) for value in labels], relevant=relevant)
