"""Loaders of the queries and candidates of each update, drawn from (seed, epoch, example id).

A group is one row of a batch, as row numbers of the text store. Loaders do not tokenise, pad or copy texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from rankpo.data.loaders.sampler import Sampler
from rankpo.data.random_keys import permutation, random_keys
from rankpo.data.table import ExampleTable


@dataclass(frozen=True, eq=False)
class Group:
    """One query with the candidates drawn for this update.

    query: row. candidates: [g] rows. slots: [g] positions in the table's candidate arrays and in stored
    reference scores. relevance: [g]. teacher: [g] or None. confidence: in [0, 1], 1 if the data has none. grades: [g]
    labels that differ from the relevance, or None. own_negatives: whether the query uses its own negatives only.
    """

    id: str
    query: int
    candidates: np.ndarray
    slots: np.ndarray
    relevance: np.ndarray
    teacher: np.ndarray | None
    confidence: float
    grades: np.ndarray | None = None
    own_negatives: bool = False


@dataclass(kw_only=True)
class DataLoader:
    """The base class of loaders, which distributes items over updates. Subclasses define items and their groups.

    weights: the number of times that an epoch repeats the examples of each dataset, by name. left_out: indices of
    excluded examples.
    """

    table: ExampleTable
    batch_size: int
    seed: int
    shuffle: bool = True
    weights: Sequence[float] = ()
    left_out: Sequence[int] = ()
    sampler: Sampler = field(init=False)

    def __post_init__(self) -> None:
        items = self.make_items()
        shown = np.isin(items[:, 0], self.left_out, invert=True) if len(self.left_out) else slice(None)
        self.items = self._weighted(items[shown])
        if not len(self.table):
            raise ValueError(
                "the training data holds no usable example: every record was left out as bad or by a filter; leave "
                "datasets.<name>.on_bad_record=skip out to see the reasons"
            )
        if not len(self.items):
            raise ValueError(
                f"the training data holds no usable example: none of {len(self.table)} is one for "
                f"{type(self).__name__}, which loss=… chooses; another loss fits them, or datasets.<name>.weight is 0"
            )
        self.sampler = Sampler(
            num_items=len(self.items),
            batch_size=self.batch_size,
            seed=self.seed,
            together=self.table.query[self.items[:, 0]] if self.keep_queries_together and len(self.items) else None,
            shuffle=self.shuffle,
        )

    keep_queries_together = False
    pairs: ClassVar[bool] = False  # Whether its groups are pairs of a chosen and a rejected candidate.

    @property
    def num_items(self) -> int:
        """The number of items of an epoch."""
        return len(self.items)

    @property
    def described(self) -> str:
        """How much data it deals, in words."""
        return f"{self.num_items:,} items an epoch"

    @property
    def current(self) -> DataLoader:
        """The loader of the data at hand, which is all of it unless it is streamed."""
        return self

    def position(self, step: int) -> dict[str, int]:
        """What must be kept to go on with update `step`; nothing where the step says it all."""
        return {}

    def continue_from(self, position: Mapping[str, int]) -> None:
        """Goes to what `position` has returned, before the first update of a continued run."""

    @property
    def updates_per_epoch(self) -> int:
        return self.sampler.updates_per_epoch

    def groups(self, step: int) -> list[Group]:
        """The groups of update `step`, counted from 0 over all epochs: the same list on every rank."""
        epoch, chosen = self.sampler.update(step)
        return [self.group(epoch, self.items[item]) for item in chosen]

    def make_items(self) -> np.ndarray:
        """Returns items, [n, 2] int64: the index of the example, and a number that the subclass defines (or -1)."""
        raise TypeError(f"{type(self).__name__} must define make_items")

    def group(self, epoch: int, item: np.ndarray) -> Group:
        raise TypeError(f"{type(self).__name__} must define group")

    def _weighted(self, items: np.ndarray) -> np.ndarray:
        if not len(self.weights) or all(weight == 1 for weight in self.weights):
            return items
        number = self.table.dataset[items[:, 0]]
        kept = []
        for dataset, weight in enumerate(self.weights):
            own = items[number == dataset]
            order = permutation(len(own), self.seed, dataset)
            whole, rest = divmod(round(weight * len(own)), max(len(own), 1))
            kept.extend([np.tile(own, (whole, 1)), own[np.sort(order[:rest])]])
        return np.concatenate(kept)

    def _keys(self, epoch: int, example: int, count: int) -> np.ndarray:
        return random_keys(count, self.seed, epoch, int(self.table.example_keys[example]))

    def _make(self, example: int, slots: np.ndarray) -> Group:
        table = self.table
        confidence = float(table.confidence[example])
        return Group(
            id=table.id(example),
            query=int(table.query[example]),
            candidates=np.asarray(table.candidates[slots]),
            slots=slots,
            relevance=np.asarray(table.relevance[slots]),
            teacher=np.asarray(table.teacher[slots]) if table.has_teacher else None,
            confidence=1.0 if np.isnan(confidence) else confidence,
            grades=np.asarray(table.grades[slots]) if table.has_grades else None,
            own_negatives=bool(table.own_negatives[example]),
        )


@dataclass(kw_only=True)
class ContrastiveDataLoader(DataLoader):
    """A positive (column 0) and up to `num_negatives` of the query's own negatives, redrawn every epoch.

    positives: "one" draws one positive per query and epoch (as RankPO does); "all" makes a group of each.
    A query with fewer negatives, or whose record allows fewer, gives a shorter group. A query without a positive is
    excluded.
    """

    num_negatives: int = 5
    positives: str = "one"

    def __post_init__(self) -> None:
        if self.num_negatives < 0:
            raise ValueError(f"dataloader.num_negatives must be >= 0, got {self.num_negatives}")
        if self.positives not in ("one", "all"):
            raise ValueError(f"dataloader.positives must be one of one, all, got {self.positives!r}")
        super().__post_init__()

    def make_items(self) -> np.ndarray:
        table = self.table
        self._relevant = table.relevant("a loss on positives and negatives")
        example_of_slot = np.repeat(np.arange(len(table)), np.diff(table.offsets))
        slots = np.flatnonzero(self._relevant)
        if self.positives == "all":
            return np.stack([example_of_slot[slots], slots], axis=1)
        examples = np.unique(example_of_slot[slots])
        return np.stack([examples, np.full(len(examples), -1)], axis=1)

    def group(self, epoch: int, item: np.ndarray) -> Group:
        example, positive = int(item[0]), int(item[1])
        slots = self.table.slots(example)
        keys = self._keys(epoch, example, len(slots) + 1)
        order = slots[np.argsort(keys[1:], kind="stable")]
        relevant = self._relevant[order]
        if positive < 0:
            positive = int(order[relevant][0])
        limit = int(self.table.max_negatives[example])
        count = self.num_negatives if limit < 0 else min(limit, self.num_negatives)
        return self._make(example, np.concatenate([[positive], order[~relevant][:count]]))


@dataclass(kw_only=True)
class PairedPreferenceDataLoader(DataLoader):
    """Chosen (column 0) and rejected (column 1), with the pairs of one query in the same update.

    An example of two candidates is one pair. From longer lists, each epoch draws `pairs_per_example` pairs of different
    relevance without replacement, followed by `extra_candidates` more candidates (for loss.kl_weight).
    """

    pairs_per_example: int = 1
    extra_candidates: int = 0
    keep_queries_together = True
    pairs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.pairs_per_example < 1:
            raise ValueError(f"dataloader.pairs_per_example must be >= 1, got {self.pairs_per_example}")
        super().__post_init__()

    def make_items(self) -> np.ndarray:
        items: list[tuple[int, int]] = []
        for example in range(len(self.table)):
            count = min(self.pairs_per_example, self._count_pairs(example))
            items.extend((example, number) for number in range(count))
        return np.array(items, dtype=np.int64).reshape(-1, 2)

    def _count_pairs(self, example: int) -> int:
        relevance = np.asarray(self.table.relevance[self.table.slots(example)])
        return int((relevance[:, None] > relevance[None, :]).sum())

    def group(self, epoch: int, item: np.ndarray) -> Group:
        example, number = int(item[0]), int(item[1])
        slots = self.table.slots(example)
        relevance = np.asarray(self.table.relevance[slots])
        chosen, rejected = np.nonzero(relevance[:, None] > relevance[None, :])
        pair = int(np.argsort(self._keys(epoch, example, len(chosen)), kind="stable")[number])
        two = np.array([chosen[pair], rejected[pair]])
        others = np.setdiff1d(np.arange(len(slots)), two)
        others = others[np.argsort(random_keys(len(others), self.seed, epoch, example, 1), kind="stable")]
        return self._make(example, slots[np.concatenate([two, others[: self.extra_candidates]])])


@dataclass(kw_only=True)
class ListwiseDataLoader(DataLoader):
    """Lists of candidates of one query with graded relevance.

    groups_per_query: "all" distributes the candidates over ceil(n / group_size) lists in each epoch. They are sorted by
    label with random ties and assigned round-robin, so that each list has the whole range of labels. "one" draws one list
    of `group_size` with `num_positives` relevant candidates. group_size: None takes the whole list.
    """

    group_size: int | None = None
    groups_per_query: str = "all"
    num_positives: int = 1
    keep_queries_together = True

    def __post_init__(self) -> None:
        if self.group_size is not None and self.group_size < 1:
            raise ValueError(f"dataloader.group_size must be >= 1 or null, got {self.group_size}")
        if self.groups_per_query not in ("all", "one"):
            raise ValueError(f"dataloader.groups_per_query must be one of all, one, got {self.groups_per_query!r}")
        super().__post_init__()

    def make_items(self) -> np.ndarray:
        if self.groups_per_query == "one":
            self._relevant = self.table.relevant("dataloader.groups_per_query=one")
        counts = np.diff(self.table.offsets)
        size = self.group_size or int(counts.max(initial=1))
        lists = -(-counts // size) if self.groups_per_query == "all" else np.minimum(counts, 1)
        examples = np.repeat(np.arange(len(self.table)), lists)
        starts = np.repeat(np.cumsum(lists) - lists, lists)
        return np.stack([examples, np.arange(len(examples)) - starts], axis=1)

    def group(self, epoch: int, item: np.ndarray) -> Group:
        example, number = int(item[0]), int(item[1])
        slots = self.table.slots(example)
        shuffled = slots[np.argsort(self._keys(epoch, example, len(slots)), kind="stable")]
        size = self.group_size or len(slots)
        if self.groups_per_query == "all":
            num_lists = -(-len(slots) // size)
            grades = np.asarray(self.table.grades[shuffled])
            return self._make(example, shuffled[np.argsort(-grades, kind="stable")][number::num_lists])
        relevant = self._relevant[shuffled]
        positives, others = shuffled[relevant], shuffled[~relevant]
        positives = positives[: self.num_positives]
        return self._make(example, np.concatenate([positives, others[: size - len(positives)]]))
