"""InfoNCE loss: the positive against the query's own negatives, or against the candidates of a whole update."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite
from typing import ClassVar

import torch
from torch import Tensor

from rankpo.losses.base import (
    require_choice,
    require_not_negative,
    require_positive,
)
from rankpo.losses.in_batch import InBatchLoss
from rankpo.losses.maths import at_least_float32
from rankpo.losses.matryoshka import Matryoshka, matryoshka, matryoshka_of
from rankpo.losses.pool import Pool, build_pool, own_candidates
from rankpo.losses.vectors import Similarity, as_vectors, inner_products
from rankpo.types import Batch, Labels, LossOutput, Vectors


@dataclass(frozen=True, kw_only=True)
class FalseNegatives:
    """Settings of the filter for probable false negatives. The filter never drops the positive.

    same_text: drops texts known to be relevant: the positive's text and other known positives of the query, also those
    of other queries with the same text. margin: drops s_j > s_p + margin (Qwen3-Embedding 0.1); ratio: drops
    s_j > s_p - (1 - ratio) abs(s_p) (https://arxiv.org/abs/2407.15831, 0.95); None disables each. scores: the source of
    s for margin and ratio, the `policy` (detached) or a `teacher` (https://arxiv.org/abs/2402.16829). Teacher scores
    exist for a query's own candidates only, so margin and ratio do not apply to candidates of other queries.
    """

    same_text: bool = True
    margin: float | None = None
    ratio: float | None = None
    scores: str = "policy"

    def __post_init__(self) -> None:
        require_choice(("policy", "teacher"), **{"false_negatives.scores": self.scores})
        if self.margin is not None and not isfinite(self.margin):
            raise ValueError(f"false_negatives.margin must be finite or null, got {self.margin}")
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise ValueError(f"false_negatives.ratio must be in (0, 1] or null, got {self.ratio}")
        if self.scores == "teacher" and self.margin is None and self.ratio is None:
            raise ValueError(
                "false_negatives.scores=teacher has no effect without false_negatives.margin or .ratio; set one of them"
            )


@dataclass(frozen=True, kw_only=True)
class Hardness:
    """Adds strength · s_ij (detached, without τ) to the logits of negatives, which increases the weight of hard ones. 0 disables it.

    mode: `hard_negatives`, the query's own (https://arxiv.org/abs/2509.20354, strength 5); `in_batch`, those of other
    queries (https://arxiv.org/abs/2503.04812, strength 9); `all`.
    """

    mode: str = "hard_negatives"
    strength: float = 0.0

    def __post_init__(self) -> None:
        require_choice(("hard_negatives", "in_batch", "all"), **{"hardness.mode": self.mode})
        require_not_negative(**{"hardness.strength": self.strength})


@dataclass(frozen=True, kw_only=True)
class ContrastiveLoss(InBatchLoss):
    """-a_p + log Σ_j e^{a_j} over positive and negatives, a = s/τ + hardness. https://arxiv.org/abs/1807.03748 eq. 4.

    Candidate 0 is the positive, the others are hard negatives. negatives: `own`, the query's candidates only, by
    `__call__`; `in_batch`, all candidates of the update, by `in_batch`. cross_device: the update of all ranks (the
    trainer gathers with gradient). deduplicate_pool: a text that occurs twice counts once. query_query,
    document_document: other queries, and the pool against the positive, join the denominator (2308.03281).
    symmetric: mean with the same loss of the positive against the queries (2310.19923). matryoshka_*: applied by
    `in_batch`; callers of `__call__` wrap the scoring in `matryoshka`.
    """

    cosine_temperature: ClassVar[float] = 0.02  # As in the run_contrastive.sh of RankPO's authors.

    temperature: float
    negatives: str = "in_batch"
    cross_device: bool = True
    deduplicate_pool: bool = True
    false_negatives: FalseNegatives = field(default_factory=FalseNegatives)
    query_query: bool = False
    document_document: bool = False
    symmetric: bool = False
    hardness: Hardness = field(default_factory=Hardness)
    matryoshka_dims: tuple[int, ...] | None = None
    matryoshka_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        require_positive(temperature=self.temperature)
        require_choice(("in_batch", "own"), negatives=self.negatives)
        _ = self.matryoshka
        if self.negatives == "in_batch":
            return
        for name in ("query_query", "document_document", "symmetric"):
            if getattr(self, name):
                raise ValueError(f"{name}=True compares with other queries and needs negatives=in_batch, got own")
        if self.hardness.mode == "in_batch" and self.hardness.strength:
            raise ValueError("hardness.mode=in_batch needs negatives=in_batch, got own; or set mode=hard_negatives")

    def teaches(self, labels: Labels) -> Tensor:
        """With negatives=own: a positive and at least one negative."""
        return labels.mask.sum(1) > 1

    @property
    def in_batch_wanted(self) -> bool:
        return self.negatives == "in_batch"

    @property
    def over_all_ranks(self) -> bool:
        return self.cross_device

    @property
    def knows(self) -> frozenset[str]:
        return frozenset({"positives"}) if self.false_negatives.same_text or not self.in_batch_wanted else frozenset()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"vectors"})

    @property
    def matryoshka(self) -> Matryoshka | None:
        return matryoshka_of(self.matryoshka_dims, self.matryoshka_weights)

    def own_mask(self, batch: Batch) -> Tensor:
        """Mask [B, G] for the labels of `__call__`; the keys define whether repeated texts and known positives are masked."""
        return own_candidates(batch, self.false_negatives.same_text, self.deduplicate_pool)

    def __call__(self, scores: Tensor, labels: Labels, reference: Tensor | None = None) -> LossOutput:
        """Own negatives: scores [B, G], of which unmasked columns count. `own_mask` masks repeated texts."""
        if self.negatives != "own":
            raise ValueError(
                "negatives=in_batch needs the embeddings of the update; call in_batch, or set negatives=own"
            )
        scores = at_least_float32(scores)
        positive = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
        eligible = labels.mask.clone()
        eligible[:, 0] = False
        kept = self._kept(scores, positive, eligible, labels.teacher)
        logits = self._logits(scores, positive, labels.mask, kept)
        losses = _cross_entropy(logits, positive)
        return LossOutput(losses, self.weights(labels)["loss"], _metrics(scores, positive, eligible, kept))

    def in_batch(
        self,
        embeddings: Tensor | Vectors,
        batch: Batch,
        queries: Tensor | None = None,
        similarity: Similarity = inner_products,
    ) -> LossOutput:
        if self.negatives != "in_batch":
            raise ValueError("negatives=own needs scores; call the loss itself, or set negatives=in_batch")
        pool = build_pool(batch, queries, self.deduplicate_pool)
        # A half-precision product, multiplied by 1/τ = 100, would have an error of about one nat.
        vectors = as_vectors(embeddings)
        with torch.autocast(vectors.rows.device.type, enabled=False):
            return matryoshka(
                lambda truncated: self._against(Vectors(truncated, vectors.counts), pool, similarity),
                vectors.rows,
                self.matryoshka,
            )

    def _against(self, vectors: Vectors, pool: Pool, similarity: Similarity) -> LossOutput:
        """Losses [b] of the pool's queries, vectors of all N texts."""
        same_text = self.false_negatives.same_text
        texts, asked = vectors.select(pool.rows), vectors.select(pool.query_rows)  # of P and Q texts
        query, positive = asked.select(pool.query), texts.select(pool.positive)  # of b texts
        scores = similarity(query, texts)  # [b, P]
        kept, metrics = self._negatives(scores, pool)
        parts = [self._logits(scores, pool.target, pool.own, kept)]
        own_query = torch.zeros_like(pool.same_query).scatter(1, pool.itself[:, None], True)
        if self.query_query:
            hidden = _with_alone(pool.same_query if same_text else own_query, pool)
            parts.append(self._hide(similarity(query, asked), hidden))
        if self.document_document:
            hidden = _with_alone(pool.own | pool.known if same_text else pool.own, pool)
            parts.append(self._hide(similarity(positive, texts), hidden))
        losses = _cross_entropy(torch.cat(parts, 1), pool.target)
        if self.symmetric:
            sharing = _with_alone(pool.shared if same_text else torch.zeros_like(own_query), pool) & ~own_query
            backward = _cross_entropy(self._hide(similarity(asked, positive).T, sharing), pool.itself)
            metrics["loss/query_to_document"] = losses.detach() / 2
            metrics["loss/document_to_query"] = backward.detach() / 2
            losses = (losses + backward) / 2
        return LossOutput(losses, torch.ones_like(losses), metrics)

    def _negatives(self, scores: Tensor, pool: Pool) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the negatives [b, P] that the filters keep, and metrics. scores: [b, P]."""
        target = pool.target
        others = torch.ones_like(pool.own).scatter(1, target[:, None], False)
        eligible = others & ~pool.known if self.false_negatives.same_text else others
        if pool.alone is not None:
            eligible = eligible & (pool.own | ~pool.alone[:, None])
        kept = self._kept(scores, target, eligible, pool.teacher)
        return kept, _metrics(scores, target, others, kept)

    def _hide(self, scores: Tensor, hidden: Tensor) -> Tensor:
        return (scores / self.temperature).masked_fill(hidden, -torch.inf)

    def _kept(self, scores: Tensor, positive: Tensor, eligible: Tensor, teacher: Tensor | None) -> Tensor:
        """Returns the negatives [b, P] that the filter keeps. positive [b]; teacher [b, P], -inf if unknown."""
        options = self.false_negatives
        judge = scores.detach()
        if options.scores == "teacher":
            if teacher is None:
                raise ValueError("false_negatives.scores=teacher needs teacher scores, but the data has none")
            judge = teacher.to(scores)
        level = judge.gather(1, positive[:, None])  # [b, 1]
        kept = eligible
        if options.margin is not None:
            kept = kept & ~(judge > level + options.margin)
        if options.ratio is not None:
            kept = kept & ~(judge > level - (1 - options.ratio) * level.abs())  # abs handles scores < 0.
        return kept

    def _logits(self, scores: Tensor, positive: Tensor, own: Tensor, kept: Tensor) -> Tensor:
        """Returns s/τ + hardness [b, P], with -inf for dropped candidates."""
        hard = {"hard_negatives": own, "in_batch": ~own, "all": torch.ones_like(own)}[self.hardness.mode] & kept
        hardness = (self.hardness.strength * scores.detach()).masked_fill(~hard, 0.0)
        visible = kept.scatter(1, positive[:, None], True)
        return (scores / self.temperature + hardness).masked_fill(~visible, -torch.inf)


def _with_alone(hidden: Tensor, pool: Pool) -> Tensor:
    """Extends `hidden` [b, columns] by all columns for queries that use only their own negatives."""
    return hidden if pool.alone is None else hidden | pool.alone[:, None]


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Losses [b] of logits [b, columns] and target columns [b]; 0 if the target is the only finite entry."""
    # log_softmax subtracts the largest logit first; logsumexp alone has a gradient error of |logit| · 1e-7.
    return -logits.log_softmax(1).gather(1, target[:, None])[:, 0]


def _metrics(scores: Tensor, positive: Tensor, others: Tensor, kept: Tensor) -> dict[str, Tensor]:
    """Returns `scores/*` [b]: the positive's score, the hardest kept negative's (the positive's if none is kept),
    whether the positive ranks first, the share of dropped negatives, and the pool size including the positive."""
    scores = scores.detach()
    chosen = scores.gather(1, positive[:, None])[:, 0]
    hardest = scores.masked_fill(~kept, -torch.inf).amax(1)
    hardest = torch.where(kept.any(1), hardest, chosen)
    count = others.sum(1)
    return {
        "scores/positive": chosen,
        "scores/negative": hardest,
        "scores/margins": chosen - hardest,
        "scores/accuracies": ((chosen > hardest) | ~kept.any(1)).to(scores.dtype),
        "scores/false_negatives": (others & ~kept).sum(1) / count.clamp(min=1),
        "scores/pool": (count + 1).to(scores.dtype),
    }
