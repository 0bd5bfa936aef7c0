"""Holdout: a split of the queries of datasets into training queries and held-out queries.

Queries are drawn by their texts, so that all examples of a query, in all datasets, are on the same side of the split. A
held-out query, or a text that is relevant to one, is not used as a positive in training.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import xxhash

from rankpo.data.dataset import Dataset
from rankpo.data.random_keys import mix, text_key
from rankpo.data.readers.fields import normal
from rankpo.data.relevance import stated
from rankpo.data.text.conversations import plain_text
from rankpo.data.wrapped import WrappedDataset
from rankpo.runs import processes
from rankpo.runs.computed_once import must_compute
from rankpo.storage.folders import written_whole
from rankpo.types import Example, Prompt

VERSION = 1  # Raise this number with every change that alters the split.
T = TypeVar("T")
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Holdout:
    """The settings of the split.

    size: the fraction of the queries in (0, 1), or their number, for each dataset. seed: the seed of the draw. by_texts:
    whether positives of held-out queries are removed from the training data; False for completions, because many prompts
    can have the same short answer.

    Raises ValueError for an invalid size.
    """

    size: float
    seed: int
    by_texts: bool = True

    def __post_init__(self) -> None:
        if not (0 < self.size < 1 or (self.size >= 1 and self.size == int(self.size))):
            raise ValueError(f"trainer.holdout must be a fraction in (0, 1) or a number of queries, got {self.size:g}")

    def count(self, queries: int) -> int:
        """The number of held-out queries of a dataset with `queries` queries."""
        count = max(1, round(self.size * queries)) if self.size < 1 else int(self.size)
        if count >= queries:
            raise ValueError(
                f"trainer.holdout={self.size:g} would hold out {count:,} of {queries:,} queries and leave none "
                "for training; lower it"
            )
        return count


@dataclass(frozen=True)
class Drawn:
    """Keys of the held-out queries, and of the texts that training must not use as positives. name: of this draw."""

    queries: frozenset[int]
    texts: frozenset[int]
    name: str


class TrainingPart(WrappedDataset):
    """The examples of the training queries, without texts that are positives of held-out queries."""

    def __init__(self, dataset: Dataset, drawn: Drawn) -> None:
        super().__init__(dataset)
        self.drawn = drawn

    def fingerprint(self) -> str:
        return f"{self.inner.fingerprint()}-trained-{self.drawn.name}"

    def examples(self) -> Iterator[Example]:
        for example in self.inner.examples():
            if query_key(example.query) in self.drawn.queries:
                continue
            if (kept := without(example, self.drawn.texts)) is not None:
                yield kept


class HeldOutPart(WrappedDataset):
    """The examples of the held-out queries."""

    def __init__(self, dataset: Dataset, drawn: Drawn, name: str) -> None:
        super().__init__(dataset)
        self.name = name
        self.drawn = drawn

    def fingerprint(self) -> str:
        return f"{self.inner.fingerprint()}-held-out-{self.drawn.name}"

    def examples(self) -> Iterator[Example]:
        return (e for e in self.inner.examples() if query_key(e.query) in self.drawn.queries)


def query_key(query: Prompt) -> int:
    """A key of the text of a query. Texts that differ only in white space or Unicode form have equal keys."""
    return text_key(normal(plain_text(query)))


def positives_of(example: Example) -> list[int]:
    """The indices of relevant candidates, by stated relevance, or else those with more than the lowest label."""
    known = stated(example)
    if known is None:
        lowest = min(example.relevance) if len(example.relevance) > 1 else -np.inf
        known = tuple(label > lowest for label in example.relevance)
    return [number for number, relevant in enumerate(known) if relevant]


def without(example: Example, texts: frozenset[int]) -> Example | None:
    """The example without positives from `texts`; None if the rest has no training signal."""
    positives = positives_of(example)
    gone = {number for number in positives if text_key(normal(example.candidates[number])) in texts}
    if not gone:
        return example
    kept = [number for number in range(len(example.candidates)) if number not in gone]
    if len(gone) == len(positives) or (stated(example) is None and len(kept) < 2):
        return None

    def taken(values: tuple[T, ...] | None) -> tuple[T, ...] | None:
        return None if values is None else tuple(values[number] for number in kept)

    return replace(
        example,
        candidates=tuple(example.candidates[number] for number in kept),
        relevance=tuple(example.relevance[number] for number in kept),
        teacher=taken(example.teacher),
        relevant=taken(example.relevant),
        grades=taken(example.grades),
        finished=taken(example.finished),
    )


def draw(datasets: Sequence[Dataset], holdout: Holdout, cache_dir: Path, say: Say) -> Drawn:
    """Draws held-out queries from each dataset. The draw is cached in cache_dir/holdout, because it reads all data.

    Raises ValueError if no query would be left for training.
    """
    parts = [VERSION, repr(holdout), *(f"{dataset.name}:{dataset.fingerprint()}" for dataset in datasets)]
    name = xxhash.xxh3_128_hexdigest(json.dumps(parts).encode())
    folder = cache_dir / "holdout" / name
    with must_compute(folder, say) as ours:
        if ours and processes.rank() == 0:
            _write(folder, [_Keys.of(dataset) for dataset in datasets], holdout)
        processes.barrier()
    queries, texts, counts = (
        np.load(folder / f"{kind}.npy", allow_pickle=False) for kind in ("queries", "texts", "counts")
    )
    held, total, examples, left_out = counts.tolist()
    say(
        f"holdout: {held:,} of {total:,} queries are held out"
        + (f"; {left_out:,} of {examples:,} examples lose positives of held-out queries" if left_out else "")
    )
    if left_out * 2 > examples:
        say(
            "warning: held-out queries share positives with most of the data; a smaller trainer.holdout keeps more training data"
        )
    return Drawn(frozenset(queries.tolist()), frozenset(texts.tolist()), name)


class _Keys:
    """Keys of one dataset: queries [E], the concatenated positives of all examples, and their numbers [E]."""

    def __init__(self) -> None:
        self.query, self.positives, self.counts = array("Q"), array("Q"), array("q")

    @classmethod
    def of(cls, dataset: Dataset) -> _Keys:
        keys = cls()
        for example in dataset.examples():
            positives = positives_of(example)
            keys.query.append(query_key(example.query))
            keys.positives.extend(text_key(normal(example.candidates[number])) for number in positives)
            keys.counts.append(len(positives))
        return keys

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns (query, positives, index of the example of each positive)."""
        examples = np.repeat(np.arange(len(self.counts)), np.array(self.counts, dtype=np.int64))
        return np.array(self.query, np.uint64), np.array(self.positives, np.uint64), examples


def _write(folder: Path, keys: Sequence[_Keys], holdout: Holdout) -> None:
    of_datasets = [part.arrays() for part in keys]
    drawn = []
    for query, _, _ in of_datasets:
        distinct = np.unique(query)
        order = np.argsort(mix(distinct ^ mix(np.array([holdout.seed], dtype=np.uint64))), kind="stable")
        drawn.append(distinct[order[: holdout.count(len(distinct))]])
    queries = np.unique(np.concatenate(drawn))
    texts = np.zeros(0, np.uint64)
    if holdout.by_texts:
        relevant = [positives[np.isin(query[owner], queries)] for query, positives, owner in of_datasets]
        texts = np.unique(np.concatenate([queries, *relevant]))
    losing = total = 0
    for query, positives, owner in of_datasets:
        trained = ~np.isin(query, queries)
        total += int(trained.sum())
        losing += len(np.unique(owner[np.isin(positives, texts) & trained[owner]]))
    everything = len(np.unique(np.concatenate([query for query, _, _ in of_datasets])))
    with written_whole(folder) as temporary:
        np.save(temporary / "queries.npy", queries, allow_pickle=False)
        np.save(temporary / "texts.npy", texts, allow_pickle=False)
        np.save(temporary / "counts.npy", np.array([len(queries), everything, total, losing]), allow_pickle=False)
