"""Parsed records: an example's parts before it has an id and a place, made of lists or of labels."""

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
    """Positives and negatives without any score."""
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
    """Positives and negatives, which decide what is relevant whatever the scores of a record are.

    Scores are labels and a teacher's values at once (with scores_are=teacher, the latter alone); where one list has
    none, its labels are 1 or 0, as in RAG-Retrieval. A record with scores and without a list of negatives may hold good
    and bad texts under its one list: the scores are its labels, and only a threshold says which of them are relevant.
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
    """A list of (text, label) as an example; with scores_are=teacher the labels are the teacher's scores too."""
    candidates, labels = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    relevant = options.relevant(labels)
    if options.scores_are == "teacher":
        return Parsed(query, candidates, labels, labels, relevant=relevant)
    return Parsed(query, candidates, [options.scaled(value) for value in labels], relevant=relevant)
