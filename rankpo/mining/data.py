"""Data of mining: queries with all their known positives, and the distinct texts of possible negatives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rankpo.data.relevance import relevant
from rankpo.errors import ConfigError
from rankpo.retrieval.corpus import TextSource, text_id, text_key


@dataclass
class Query:
    """One distinct query text with its prompt. positives: text numbers, of all rows and datasets. rows: examples with
    this text. prompt: from the records, which replaces the model's prompt; None: the model's prompt.
    """

    id: str
    text: str
    positives: list[int] = field(default_factory=list)
    rows: int = 0
    prompt: str | None = None


@dataclass(frozen=True)
class MiningData:
    """Data of mining. ids, texts: first `num_candidates` texts of the corpus, then positives outside it.

    numbers: text number by `text_key`. merged: the number of repeated texts in the corpus.
    """

    queries: Sequence[Query]
    ids: Sequence[str]
    texts: Sequence[str]
    num_candidates: int
    numbers: dict[bytes, int]
    merged: int

    def own_number(self, query: Query) -> int | None:
        """The number of the query's own text, if it is one of the texts."""
        return self.numbers.get(text_key(query.text))


def read(datasets: Iterable[Any], corpus: TextSource) -> MiningData:
    """Reads corpus and datasets. Raises ConfigError without a candidate or a query with a positive."""
    ids: list[str] = []
    texts: list[str] = []
    numbers: dict[bytes, int] = {}
    merged = 0
    for identity, text in corpus.texts():
        key = text_key(text)
        if key in numbers:
            merged += 1
            continue
        numbers[key] = len(texts)
        ids.append(identity)
        texts.append(text)
    num_candidates = len(texts)
    if not num_candidates:
        raise ConfigError([f"mining.corpus: {corpus.name} holds no text"])
    queries: dict[bytes, Query] = {}
    for dataset in datasets:
        for example in dataset.examples():
            key = text_key(example.query) + text_key(f"={example.query_prompt}")
            query = queries.setdefault(key, Query(example.id, example.query, prompt=example.query_prompt))
            query.rows += 1
            known = relevant(example, dataset.name, "task=mine")
            for text in (text for text, positive in zip(example.candidates, known, strict=True) if positive):
                key = text_key(text)
                if key not in numbers:
                    numbers[key] = len(texts)
                    ids.append(text_id(text))
                    texts.append(text)
                if numbers[key] not in query.positives:
                    query.positives.append(numbers[key])
    mined = [query for query in queries.values() if query.positives]
    if not mined:
        raise ConfigError(["mining needs positives, but datasets hold no query with a positive; choose other datasets"])
    return MiningData(mined, ids, texts, num_candidates, numbers, merged)
