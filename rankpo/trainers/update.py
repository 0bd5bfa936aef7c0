"""What one update is made of, prepared on the CPU before it runs: micro-batches, and the sums to divide by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from rankpo.losses.base import Loss
from rankpo.types import Batch, Labels, LossOutput

Prepared = TypeVar("Prepared")


@dataclass(frozen=True)
class MicroBatch:
    """A batch and whether it counts: an empty share runs the cheapest group with weight 0, in step with the others."""

    batch: Batch
    counts: bool = True


@dataclass(frozen=True)
class Update:
    """This rank's micro-batches of one update.

    denominators: the sum of each loss term's weights over all ranks. num_queries: over all ranks. num_tokens: what
    this rank encodes. ids: of all its examples.
    """

    micro_batches: Sequence[MicroBatch]
    denominators: Mapping[str, float]
    num_queries: int
    num_tokens: int
    ids: tuple[str, ...]


def denominators(loss: Loss, labels: Labels) -> dict[str, float]:
    """Sums of the weights of each term, as plain numbers."""
    return sums(loss.weights(labels))


def sums(weights: Mapping[str, Tensor]) -> dict[str, float]:
    """The sum of the weights [B] of each term, as plain numbers."""
    return {name: float(of_term.double().sum()) for name, of_term in weights.items()}


def total(output: LossOutput, sums: Mapping[str, float]) -> Tensor:
    """Σ over terms of scale · Σ losses·weights / global Σ weights; a term without any weight contributes 0."""
    value = _part(output.losses, output.weights, sums["loss"])
    for name, term in output.terms.items():
        value = value + term.scale * _part(term.losses, term.weights, sums[name])
    return value


def _part(losses: Tensor, weights: Tensor | None, denominator: float) -> Tensor:
    if denominator == 0:
        return torch.where(torch.isfinite(losses), losses, 0).sum() * 0
    weighted = losses if weights is None else torch.where(weights > 0, losses * weights, 0)
    return weighted.sum() / denominator


class Ahead(Generic[Prepared]):
    """Prepares the next update in a thread while this one runs.

    `make` must depend on the step alone, so that it does not matter when it is called.
    """

    def __init__(self, make: Callable[[int], Prepared], last: int) -> None:
        self.make = make
        self.last = last
        self.pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prepare")
        self.waiting: tuple[int, Future[Prepared]] | None = None

    def get(self, step: int) -> Prepared:
        ready = self.waiting
        value = ready[1].result() if ready is not None and ready[0] == step else self.make(step)
        self.waiting = (step + 1, self.pool.submit(self.make, step + 1)) if step + 1 < self.last else None
        return value

    def close(self) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)
