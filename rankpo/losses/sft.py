"""Supervised fine-tuning losses: negative log-probability of the completion, and its conditional form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from rankpo.losses.base import Loss
from rankpo.losses.maths import at_least_float32
from rankpo.types import Labels, LossOutput


@dataclass(frozen=True, kw_only=True)
class SFTLoss(Loss):
    """-log p per scored token of the first candidate; the update's value is the mean over all its tokens.

    scores [B, 1 or more]: summed log-probabilities; `labels.lengths` counts their tokens. losses [B] are means per
    token, weighted by token count. For sequences of 4 and 1 tokens at 2 and 6 nats per token the loss is the mean over
    tokens, 2.8, and not the mean of means, 4.
    """

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"token_logps"})

    def weights(self, labels: Labels) -> Mapping[str, Tensor]:
        return {"loss": _lengths(labels)}

    def __call__(self, scores: Tensor, labels: Labels, reference: Tensor | None = None) -> LossOutput:
        logps = at_least_float32(scores)[:, 0]  # [B]
        weights = self.weights(labels)["loss"]
        per_token = logps / weights.clamp(min=1)  # An empty completion has sum 0 and weight 0.
        metrics = {"logps/chosen": logps.detach(), "logps/token": per_token.detach()}
        return LossOutput(-per_token, weights, metrics)


@dataclass(frozen=True, kw_only=True)
class ConditionalSFTLoss(SFTLoss):
    """SFT on desirable and undesirable completions, each preceded by its control token.

    https://arxiv.org/abs/2302.08582 section 2.2. The tokens are `model.control_tokens`; they are part of the context
    and are not scored. At inference the prompt ends with the first one.
    """

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"control_tokens"}


def _lengths(labels: Labels) -> Tensor:
    if labels.lengths is None:
        raise ValueError("supervised fine-tuning needs labels.lengths, the scored tokens of each completion, got None")
    return labels.lengths[:, 0].to(labels.relevance.dtype)
