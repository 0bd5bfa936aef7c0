"""Losses of listwise language-model rerankers on generated rankings, identifier logits, or both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rankpo.losses.base import Loss, require_choice, require_positive
from rankpo.losses.lists import list_metrics, ordered_lists, ordered_pairs
from rankpo.losses.maths import at_least_float32
from rankpo.types import Labels, LossOutput, Term


@dataclass(frozen=True, kw_only=True)
class ListwiseLMLoss(Loss):
    """Loss of an objective. generation: -log p of the answer per answer token of the update (RankZephyr, 2312.02724).
    ranking: `ranking` on the identifiers' logits [B, G] at the score position. combined: generation + ranking_weight ·
    ranking (FIRST, https://arxiv.org/abs/2406.15657), each with its own denominator, answer tokens and lists.

    ranking: any loss on lists; None with generation. ranking_weight: λ, published 10 for ranknet with weight=rank, .1
    for listnet, 1 for lambdarank and plain ranknet.
    """

    objective: str
    ranking: Loss | None = None
    ranking_weight: float = 1.0

    def __post_init__(self) -> None:
        require_choice(("generation", "ranking", "combined"), objective=self.objective)
        require_positive(ranking_weight=self.ranking_weight)
        if (self.ranking is None) != (self.objective == "generation"):
            wanted = "null" if self.objective == "generation" else "a loss on lists"
            raise ValueError(f"ranking must be {wanted} with objective={self.objective}")

    @property
    def needs(self) -> frozenset[str]:
        of_ranking = frozenset() if self.ranking is None else self.ranking.needs
        return of_ranking | {"lists"} | ({"answers"} if self._reads_answers else set())

    @property
    def _reads_answers(self) -> bool:
        """Whether the answer follows the prompt in the input."""
        return self.objective != "ranking"

    def weights(self, labels: Labels) -> Mapping[str, Tensor]:
        if self.ranking is not None and not self._reads_answers:
            return self.ranking.weights(labels)
        weights = {"loss": _answer_tokens(labels)}
        if self.ranking is not None:
            weights["ranking"] = self.ranking.weights(labels)["loss"]
        return weights

    def __call__(
        self, scores: Tensor, labels: Labels, reference: Tensor | None = None, *, answer_logps: Tensor | None = None
    ) -> LossOutput:
        """scores [B, G]: identifier logits. answer_logps [B]: summed log-probabilities of the answers, in nats."""
        ranked = None if self.ranking is None else self.ranking(scores, labels, reference)
        if ranked is not None and not self._reads_answers:
            return ranked
        if answer_logps is None:
            raise ValueError(f"objective={self.objective} needs the log-probabilities of the answers [B], got None")
        tokens = _answer_tokens(labels)
        # The loss is per answer token, weighted by the token count; an empty answer has sum 0 and weight 0.
        losses = -at_least_float32(answer_logps) / tokens.clamp(min=1)
        if ranked is None:
            mask = labels.mask
            target = labels.relevance.to(scores.dtype).masked_fill(~mask, 0.0)
            known = labels.on_cpu
            told = ordered_lists(known.relevance, known.mask)
            metrics = list_metrics(scores.detach(), target, mask, told, graded=True)
            empty = ~ordered_pairs(target, mask).flatten(1).any(1)
            return LossOutput(losses, tokens, {**metrics, "scores/empty": empty.to(scores.dtype)})
        terms = {"ranking": Term(ranked.losses, ranked.weights, self.ranking_weight)}
        return LossOutput(losses, tokens, dict(ranked.metrics), terms)


def _answer_tokens(labels: Labels) -> Tensor:
    if labels.lengths is None:
        raise ValueError("a generative objective needs labels.lengths, the answer tokens of each passage, got None")
    return labels.lengths.sum(1).to(torch.float32)
