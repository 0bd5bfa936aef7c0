"""A file of queries with their positives, and a file of the corpus: RankPO's evaluation, also its raw records."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import xxhash

from rankpo.data.readers import files
from rankpo.data.readers.fields import extract, normal
from rankpo.data.readers.texts import of_record, read_texts
from rankpo.data.shape import Declares
from rankpo.types import Example


@dataclass(kw_only=True)
class QueryCorpus(Declares):
    """Queries that are searched in a corpus; as training data, every positive of a query.

    queries: JSON Lines (or another table) with `query` or `text`, and `positives`: ids or texts of the corpus, or the
    numbers of its lines, from 0, as `positives.index` of RankPO's raw records. corpus: JSON Lines with `text`, or a table;
    a document without an id has the number of its line. Raises ValueError naming the line for a positive that the corpus
    does not have.
    """

    name: str
    queries_file: str
    corpus_file: str
    ignore_identical_ids: bool = False
    relevant_from: int = 1
    gain: str = "linear"
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.gain not in ("exp", "linear"):
            raise ValueError(f"gain must be one of exp, linear, got {self.gain!r}")
        self._queries = files.find(self.queries_file, "queries_file")
        self._corpus = files.find(self.corpus_file, "corpus_file")

    @property
    def judgements(self) -> QueryCorpus:
        return self

    @property
    def relevant_label(self) -> float:
        return self.relevant_from

    def fingerprint(self) -> str:
        contents = files.content_fingerprint([*self._queries, *self._corpus])
        return xxhash.xxh3_128_hexdigest((contents + json.dumps("query_corpus")).encode())

    def corpus(self) -> Iterator[tuple[str, str]]:
        """(id, text) of each document."""
        number = 0
        for path in self._corpus:
            for _, identity, text in read_texts(path, "passage"):
                yield str(number) if identity is None else identity, text
                number += 1

    def queries(self) -> Iterator[tuple[str, str]]:
        for identity, text, _ in self._judged:
            yield identity, text

    def qrels(self) -> dict[str, dict[str, int]]:
        return {identity: dict.fromkeys(positives, 1) for identity, _, positives in self._judged}

    def examples(self) -> Iterator[Example]:
        texts = dict(self.corpus())
        for identity, text, positives in self._judged:
            chosen = tuple(texts[name] for name in positives)
            yield Example(text, chosen, (1.0,) * len(chosen), f"{self.name}:{identity}", relevant=(True,) * len(chosen))

    @cached_property
    def _judged(self) -> list[tuple[str, str, list[str]]]:
        """(id, text, ids of the positives) of every query."""
        ids = [identity for identity, _ in self.corpus()]
        places = {_digest(text): identity for identity, text in self.corpus()}
        known, found = set(ids), list[tuple[str, str, list[str]]]()
        for path in self._queries:
            for place, record in files.records(path):
                where = f"datasets.{self.name}: {place}"
                try:
                    identity, text = of_record(place, record, "query")
                except ValueError as error:
                    raise ValueError(f"datasets.{self.name}: {error}") from error
                positives = [_document(item, ids, known, places, where) for item in _positives(record, where)]
                found.append((identity or f"q{len(found)}", text, list(dict.fromkeys(positives))))
        return found


def _positives(record: object, where: str) -> Sequence[object]:
    assert isinstance(record, Mapping)
    given = next((value for key in KEYS if (value := extract(record, key)) is not None), None)
    if not isinstance(given, list) or not given:
        raise ValueError(f"{where}: no list under {' or '.join(KEYS)} (found: {', '.join(record) or 'nothing'})")
    return given


KEYS = ("positives.index", "positives.id", "positives", "pos", "positive_ids", "positive_document_ids")


def _document(item: object, ids: Sequence[str], known: set[str], places: Mapping[int, str], where: str) -> str:
    """The id of a positive: the number of its line, its id, or its text."""
    if isinstance(item, int) and not isinstance(item, bool):
        if 0 <= item < len(ids):
            return ids[item]
        raise ValueError(f"{where}: the positive {item} is no line of the corpus, which has {len(ids):,}")
    if isinstance(item, str) and item in known:
        return item
    if isinstance(item, str) and (named := places.get(_digest(item))) is not None:
        return named
    raise ValueError(f"{where}: the positive {str(item)[:60]!r} is neither an id nor a text of the corpus")


def _digest(text: str) -> int:
    return xxhash.xxh3_64_intdigest(normal(text).encode())
