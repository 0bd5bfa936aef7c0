"""WeightAverage: an exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from rankpo.trainers.strategies.base import Strategy


class WeightAverage:
    """An exponential moving average of the trained weights, which evaluations and FINAL use in their place.

    After update t, average ← d·average + (1 - d)·weights with d = min(decay, (1 + t) / (10 + t)), so that the start
    weights do not dominate the average of a short run; the same formula as in TensorFlow's ExponentialMovingAverage.
    Every rank averages its own part of sharded weights.
    """

    def __init__(self, strategy: Strategy, decay: float) -> None:
        self.strategy = strategy
        self.decay = decay
        self.values = strategy.local_weights()

    def update(self, step: int) -> None:
        """Adds the current weights. step: the number of completed updates, t."""
        decay = min(self.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, weight in self.strategy.trained.items():
                self.values[name].lerp_(weight.detach(), 1 - decay)

    def use(self) -> None:
        """Writes the average into the model, for good."""
        self.strategy.load_local(self.values)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """The model holds the average inside the context, and its own weights again after it."""
        own = self.strategy.local_weights()
        self.use()
        try:
            yield
        finally:
            self.strategy.load_local(own)

    def whole(self) -> dict[str, Tensor]:
        """The complete average by name on rank 0, {} elsewhere. All ranks must call it."""
        with self.in_use():
            return {name: tensor.clone() for name, tensor in self.strategy.trained_weights().items()}
