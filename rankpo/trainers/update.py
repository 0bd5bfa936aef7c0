"""Updates, which the CPU prepares before they run: micro-batches and global denominators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Generic, Protocol, Self, TypeVar

from rankpo.types import Batch, Sequences

Made = TypeVar("Made")
Inputs = TypeVar("Inputs", Batch, Sequences)


class Change(Protocol):
    """A function of a batch or of sequences, such as a copy to a device."""

    def __call__(self, inputs: Inputs, /) -> Inputs: ...


class Prepared(Protocol):
    """An update of any trainer: its queries over all ranks, this rank's tokens, and the ids of its examples."""

    @property
    def num_queries(self) -> int: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def ids(self) -> tuple[str, ...]: ...

    def with_inputs(self, change: Change) -> Self:
        """Returns the update with `change` applied to its batches, and to sequences that it holds beside them."""
        ...


@dataclass(frozen=True)
class MicroBatch:
    """A batch and whether it counts. A rank with an empty share runs the cheapest group with weight 0."""

    batch: Batch
    counts: bool = True

    def with_inputs(self, change: Change) -> MicroBatch:
        return replace(self, batch=change(self.batch))


@dataclass(frozen=True)
class Update:
    """This rank's micro-batches of one update.

    denominators: the sum of each loss term's weights over all ranks. num_queries: queries over all ranks. num_tokens:
    tokens that this rank encodes. ids: identifiers of all examples of the update.
    """

    micro_batches: Sequence[MicroBatch]
    denominators: Mapping[str, float]
    num_queries: int
    num_tokens: int
    ids: tuple[str, ...]

    def with_inputs(self, change: Change) -> Self:
        return replace(self, micro_batches=[item.with_inputs(change) for item in self.micro_batches])


class NonFiniteError(RuntimeError):
    """Raised for a NaN or infinite loss or gradient, before any weight or checkpoint changes."""

    @classmethod
    def of(cls, update: int, ids: Sequence[str]) -> NonFiniteError:
        """update: the number of the update, from 1. ids: identifiers of its examples."""
        shown = ", ".join(ids[:8]) + (", …" if len(ids) > 8 else "")
        return cls(
            f"update {update}: the loss or its gradient is not finite; examples {shown}. No weight or checkpoint was "
            "changed. Lower optimizer.lr, set trainer.precision=fp32 or check the examples."
        )


class Ahead(Generic[Made]):
    """Prepares the next update in a thread while this one runs.

    The result of `make` must depend on the step alone, because the time of the call varies.
    """

    def __init__(self, make: Callable[[int], Made], last: int) -> None:
        self.make = make
        self.last = last
        self.pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prepare")
        self.waiting: tuple[int, Future[Made]] | None = None

    def get(self, step: int) -> Made:
        ready = self.waiting
        value = ready[1].result() if ready is not None and ready[0] == step else self.make(step)
        self.waiting = (step + 1, self.pool.submit(self.make, step + 1)) if step + 1 < self.last else None
        return value

    def close(self) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)
