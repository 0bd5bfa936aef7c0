"""MixtureLoss: a weighted sum of losses on the same scores, such as one on labels and one on teacher scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rankpo.losses.base import Loss, require_positive
from rankpo.types import Labels, LossOutput, Term


@dataclass(frozen=True, kw_only=True)
class MixtureLoss(Loss):
    """Σ weight·loss. Each loss has its own denominator and is logged unweighted as `loss/<name>`.

    losses: losses by name; the first is the main term and provides the metrics. term_weights: weight by name, > 0.
    """

    losses: Mapping[str, Loss]
    term_weights: Mapping[str, float]

    def __post_init__(self) -> None:
        if len(self.losses) < 2:
            raise ValueError(f"losses must name two or more, got {', '.join(self.losses) or 'none'}")
        if set(self.losses) != set(self.term_weights):
            raise ValueError(
                f"term_weights must have the names of losses, {', '.join(self.losses)}, got {', '.join(self.term_weights)}"
            )
        if reserved := set(self.losses) & {"loss"}:
            raise ValueError(f"losses must not use the name {reserved.pop()}, which is reserved for the sum")
        for name, loss in self.losses.items():
            if isinstance(loss, MixtureLoss):
                raise ValueError(f"losses.{name} is a mixture; list its losses and weights here instead")
        require_positive(**{f"term_weights.{name}": weight for name, weight in self.term_weights.items()})

    @property
    def main(self) -> str:
        return next(iter(self.losses))

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(loss.needs for loss in self.losses.values()))

    def teaches(self, labels: Labels) -> Tensor:
        return torch.stack([loss.teaches(labels) for loss in self.losses.values()]).any(0)

    def weights(self, labels: Labels) -> Mapping[str, Tensor]:
        by_name = {}
        for name, loss in self.losses.items():
            weights = loss.weights(labels)
            if more := sorted(set(weights) - {"loss"}):
                raise ValueError(
                    f"losses.{name} has further terms ({', '.join(more)}), which a mixture does not support"
                )
            by_name[name] = weights["loss"]
        return {"loss": by_name[self.main], **{name: by_name[name] for name in by_name if name != self.main}}

    def __call__(self, scores: Tensor, labels: Labels, reference: Tensor | None = None) -> LossOutput:
        outputs = {name: loss(scores, labels, reference) for name, loss in self.losses.items()}
        first = outputs.pop(self.main)
        terms = {name: Term(output.losses, output.weights, self.term_weights[name]) for name, output in outputs.items()}
        metrics = {**first.metrics, f"loss/{self.main}": first.losses.detach()}
        return LossOutput(self.term_weights[self.main] * first.losses, first.weights, metrics, terms)
