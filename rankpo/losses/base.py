"""What all losses share: the contract, and the checks of their hyperparameters.

A loss is a frozen dataclass: its fields are the keys of its yaml, checked in `__post_init__`; `__call__` takes
tensors and returns a `LossOutput` that is not reduced. No model, config, process group, clock or random number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rankpo.types import Labels, LossOutput

if TYPE_CHECKING:
    from rankpo.losses.in_batch import InBatchLoss


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Base of all losses on scores.

    `__call__(scores, labels, reference)`: scores [B, G] raw model scores; labels as in `types.Labels`;
    reference [B, G] scores of the reference model, or None.
    """

    @property
    def needs_reference(self) -> bool:
        """Whether `__call__` must be given reference scores."""
        return False

    @property
    def needs_tokens(self) -> bool:
        """Whether it acts on log-probabilities of tokens, which only causal language models have."""
        return False

    def needs_live_reference(self, kind: str) -> bool:
        """Whether stored reference scores per candidate are not enough: for models of this kind, the reference model
        itself must be at hand."""
        return False

    @property
    def head(self) -> str | None:
        """The scalar head that a causal language model needs for this loss: "value" (of each token), "reward" (of the
        whole completion) or None. Other models are scored as they are."""
        return None

    @property
    def replay_loss(self) -> InBatchLoss | None:
        """The loss on `replay_datasets`, which the trainer weighs by `replay_weight`; None where nothing is replayed."""
        return None

    def initial_state(self) -> dict[str, float]:
        """Numbers that the loss carries from update to update, given to `__call__` as `state`; most carry none.

        The trainer keeps them, equal on all ranks and for all micro-batches of an update, and saves them.
        """
        return {}

    def next_state(self, state: Mapping[str, float], means: Mapping[str, float], num_queries: int) -> dict[str, float]:
        """`state` after an update. means: of its metrics by name, over all ranks; num_queries: their count."""
        return dict(state)

    def weights(self, labels: Labels) -> Mapping[str, Tensor]:
        """Weights [B] of each term, known from the labels alone; the main term is named "loss".

        The training loop sums them over the whole update before any forward pass, so that each micro-batch and
        each rank divides by the same global denominators.
        """
        return {"loss": torch.ones(len(labels), device=labels.relevance.device)}

    def __call__(self, scores: Tensor, labels: Labels, reference: Tensor | None = None) -> LossOutput:
        raise TypeError(f"{type(self).__name__} does not act on scores")


def require_positive(**values: float) -> None:
    """Raises ValueError naming the first value that is not > 0."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be > 0, got {value}")


def require_not_negative(**values: float) -> None:
    """Raises ValueError naming the first value that is < 0 or NaN."""
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{name} must be >= 0, got {value}")


def require_below(limit: float, **values: float) -> None:
    """Raises ValueError naming the first value outside [0, limit)."""
    for name, value in values.items():
        if not 0 <= value < limit:
            raise ValueError(f"{name} must be in [0, {limit}), got {value}")


def require_choice(allowed: tuple[str, ...], **values: str) -> None:
    """Raises ValueError naming the first value that is not one of `allowed`."""
    for name, value in values.items():
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def require_reference(loss: object, reference: Tensor | None) -> Tensor:
    """The reference scores; raises ValueError where there are none."""
    if reference is None:
        raise ValueError(f"{type(loss).__name__} needs reference scores [B, G], got None")
    return reference


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32; float64 stays, so that gradcheck can be used."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
