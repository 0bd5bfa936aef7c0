"""Base class of losses, and checks of their hyperparameters.

A loss is a frozen dataclass: its fields are the keys of its yaml, checked in `__post_init__`; `__call__` takes
tensors and returns an unreduced `LossOutput`. A loss uses no model, config, process group, clock or random number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rankpo.losses.matryoshka import Matryoshka
from rankpo.losses.temperature import HasTemperature
from rankpo.types import Labels, LossOutput

# A loss may need:
#   vectors         one embedding of each text: the loss compares texts of the whole update, or truncates vectors
#   parts           scores of several parts of a model, and their sum
#   token_logps     log-probabilities of the tokens of a completion
#   lists           a model that reads all candidates of a query in one prompt
#   answers         the written order of such a list behind the prompt, and its log-probability
#   reference       scores of the reference model for `__call__`
#   live_reference  the reference model itself: stored scores per candidate are not enough
#   teacher         `labels.teacher`, a teacher's score of every candidate
#   control_tokens  `model.control_tokens` before desirable and undesirable completions
#   value_head      a critic, which estimates the value of every token of a completion
#   reward_head     a scalar reward of a whole completion, in place of its log-probability
NEEDS = frozenset(
    [
        "vectors",
        "parts",
        "token_logps",
        "lists",
        "answers",
        "reference",
        "live_reference",
        "teacher",
        "control_tokens",
        "value_head",
        "reward_head",
    ]
)


@dataclass(frozen=True, kw_only=True)
class Loss(HasTemperature):
    """Base of all losses on scores.

    `__call__(scores, labels, reference)`: scores [B, G] raw model scores; labels as in `types.Labels`;
    reference [B, G] scores of the reference model, or None.
    """

    # True if the loss is defined on pairs of a chosen and a rejected candidate.
    on_pairs: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[str]:
        """The inputs of the loss besides scores and labels of candidates, out of `NEEDS`."""
        return frozenset()

    def needs_with(self, gives: frozenset[str]) -> frozenset[str]:
        """Returns the needs for a model kind with the outputs `gives`; some losses act on tokens if the kind has them."""
        return self.needs

    def asked_by(self, need: str) -> str:
        """Returns the key whose value causes `need`, or the name of the loss if it always has this need."""
        return type(self).__name__

    @property
    def replay_weight(self) -> float:
        """The weight of the loss on `replay_datasets`; 0 without replay."""
        return 0.0

    def without_replay(self) -> Loss:
        """Returns the same loss without replay."""
        return self

    @property
    def replay_loss(self) -> Loss | None:
        """The loss on `replay_datasets`, which the trainer multiplies by `replay_weight`; None without replay."""
        return None

    @property
    def prior_weight(self) -> float:
        """The weight of the term on the passages' priors; 0 without this term."""
        return 0.0

    @property
    def by_inner_products(self) -> bool:
        """Whether the loss compares whole vectors by the model's own scores; False: by cosines, distances or parts."""
        return self.matryoshka is None

    @property
    def matryoshka(self) -> Matryoshka | None:
        """The sizes of embeddings for which the loss is computed; None: the full size only."""
        return None

    @property
    def value_max_grad_norm(self) -> float | None:
        """The clipping norm of the value head's gradient; None: it is clipped together with all other parameters."""
        return None

    @property
    def reward_scale(self) -> float:
        """The factor from log-ratios to rewards in evaluations, for losses that are not defined on pairs."""
        return 1.0

    def fitted(self, logps: str) -> Loss:
        """Returns the loss with `logps=auto` resolved by the model's kind.

        logps: `ModelKind.logps`; see `maths.logps_from_scores`. A loss without the key is returned unchanged.
        """
        return self

    def initial_state(self) -> dict[str, float]:
        """Returns the initial state, numbers that change after each update and are passed to `__call__` as `state`.

        Most losses have none. The trainer saves the state; it is equal on all ranks and micro-batches of an update.
        """
        return {}

    def next_state(self, state: Mapping[str, float], means: Mapping[str, float], num_queries: int) -> dict[str, float]:
        """Returns the state after an update. means: of the update's metrics, over all ranks. num_queries: of the update."""
        return dict(state)

    def weights(self, labels: Labels) -> Mapping[str, Tensor]:
        """Weights [B] of each term, known from the labels alone; the main term is named "loss".

        The training loop sums them over the whole update before any forward pass, so that each micro-batch and
        each rank divides by the same global denominators.
        """
        return {"loss": torch.ones(len(labels), device=labels.relevance.device)}

    def teaches(self, labels: Labels) -> Tensor:
        """Returns [B] bool: whether the labels of each list allow a non-zero gradient."""
        return torch.ones(len(labels), dtype=torch.bool)

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
    """Returns the reference scores; raises ValueError if there are none."""
    if reference is None:
        raise ValueError(f"{type(loss).__name__} needs reference scores [B, G], got None")
    return reference
