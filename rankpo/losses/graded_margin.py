"""Graded margin loss: each passage above the log-sum-exp of all passages of lower grades, per cut between grades."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rankpo.losses.base import require_choice, require_not_negative, require_positive
from rankpo.losses.graded_pool import GradedPool, graded_pool
from rankpo.losses.lists import list_metrics, mean_over, ordered_lists, ordered_pairs
from rankpo.losses.maths import at_least_float32, negative_log_sigmoid
from rankpo.losses.matryoshka import matryoshka
from rankpo.losses.nested import NestedInBatchLoss
from rankpo.losses.vectors import Similarity, as_vectors, inner_products
from rankpo.types import Batch, Labels, LossOutput, Vectors


@dataclass(frozen=True, kw_only=True)
class GradedMarginLoss(NestedInBatchLoss):
    """Mean over cuts g of mean over {y_j ≥ g} of softplus(margin + log Σ_{y_i < g} e^{s_i} - s_j), s = score/τ.

    The cuts of a query are all its grades but the lowest, so that the loss ranks grade 1 above grade 0; InfoNCE treats
    both as negatives. With two grades and one negative this is ℓ(s_pos - s_neg - margin).

    temperature: τ; margin: in nats, after the division by τ. negatives: `own`, the query's candidates, by `__call__`;
    `in_batch`, all passages of the update, each with its grade for this query in any example of the data.
    unknown: passages without such a grade are `masked`, or count as `irrelevant`: as grade 0, or as the
    query's lowest grade if that is below 0. A query with passages of a single grade has weight 0.
    """

    temperature: float = 0.05
    margin: float = 2.0
    negatives: str = "in_batch"
    unknown: str = "masked"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(temperature=self.temperature)
        require_not_negative(margin=self.margin)
        require_choice(("in_batch", "own"), negatives=self.negatives)
        require_choice(("masked", "irrelevant"), unknown=self.unknown)
        if self.negatives == "own" and self.unknown == "irrelevant":
            raise ValueError(
                "unknown=irrelevant applies to passages of other queries and needs negatives=in_batch, got own"
            )

    @property
    def in_batch_wanted(self) -> bool:
        return self.negatives == "in_batch"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"vectors"}) if self.in_batch_wanted or self.matryoshka is not None else frozenset()

    def asked_by(self, need: str) -> str:
        return "loss.negatives=in_batch" if self.in_batch_wanted else "loss.matryoshka_dims"

    @property
    def knows(self) -> frozenset[str]:
        return frozenset({"grades"}) if self.in_batch_wanted else frozenset()

    def weights(self, labels: Labels) -> Mapping[str, Tensor]:
        return {"loss": ordered_pairs(labels.relevance, labels.mask).flatten(1).any(1).float()}

    def __call__(self, scores: Tensor, labels: Labels, reference: Tensor | None = None) -> LossOutput:
        """Computes the loss on each query's own candidates from raw scores [B, G]."""
        if self.in_batch_wanted:
            raise ValueError(
                "negatives=in_batch needs the embeddings of the update; call in_batch, or set negatives=own"
            )
        scores = at_least_float32(scores).masked_fill(~labels.mask, 0.0)
        grades = at_least_float32(labels.relevance).masked_fill(~labels.mask, 0.0)
        known = labels.on_cpu
        cuts = cuts_of(known.relevance, known.mask)
        losses = graded_margin(scores / self.temperature, grades, labels.mask, cuts, self.margin)
        told = ordered_lists(known.relevance, known.mask)
        metrics = list_metrics(scores.detach(), grades.to(scores.dtype), labels.mask, told, graded=True)
        return LossOutput(losses, self.weights(labels)["loss"], metrics)

    def in_batch_weights(self, batch: Batch) -> Mapping[str, Tensor]:
        return {"loss": graded_pool(batch, None, self.unknown == "irrelevant").teaches.float()}

    def in_batch(
        self,
        embeddings: Tensor | Vectors,
        batch: Batch,
        queries: Tensor | None = None,
        similarity: Similarity = inner_products,
    ) -> LossOutput:
        if not self.in_batch_wanted:
            raise ValueError("negatives=own needs scores; call the loss itself, or set negatives=in_batch")
        made = graded_pool(batch, queries, self.unknown == "irrelevant")
        cuts, told = cuts_of(made.grades, made.known), ordered_lists(made.grades.gather(1, made.own), made.own_mask)
        # A half-precision product, multiplied by 1/τ, would have an error of about one nat.
        vectors = as_vectors(embeddings)
        pool = made.to(vectors.rows.device)

        def against(cut: Tensor) -> LossOutput:
            every = Vectors(cut, vectors.counts)
            scores = similarity(every.select(made.query_rows), every.select(made.rows))  # [b, P]
            return self._of_pool(scores, pool, cuts, told)

        with torch.autocast(vectors.rows.device.type, enabled=False):
            return matryoshka(against, vectors.rows, self.matryoshka)

    def _of_pool(self, scores: Tensor, pool: GradedPool, cuts: Sequence[float], told: Tensor) -> LossOutput:
        """scores: [b, P]. told: the queries with an ordered pair of own candidates."""
        losses = graded_margin(scores / self.temperature, pool.grades, pool.known, cuts, self.margin)
        own = scores.detach().gather(1, pool.own)  # [b, G]
        metrics = list_metrics(own, pool.grades.gather(1, pool.own).to(own.dtype), pool.own_mask, told, graded=True)
        metrics["scores/pool"] = pool.known.sum(1).to(scores.dtype)
        return LossOutput(losses, pool.teaches.to(losses.dtype), metrics)


def cuts_of(grades: Tensor, known: Tensor) -> list[float]:
    """All distinct known grades but the lowest, ascending. On the CPU, they can be read without a wait for a GPU."""
    return [float(grade) for grade in grades[known].unique()[1:]]


def graded_margin(logits: Tensor, grades: Tensor, known: Tensor, grade_cuts: Sequence[float], margin: float) -> Tensor:
    """Losses [b] of logits s/τ and grades [b, P], over known [b, P]; 0 for a row with equal known grades.

    grade_cuts: the result of `cuts_of`.
    """
    losses, cuts = torch.zeros_like(logits[:, 0]), torch.zeros_like(logits[:, 0])
    for grade in grade_cuts:
        high, low = known & (grades >= grade), known & (grades < grade)
        cut = (known & (grades == grade)).any(1) & low.any(1)  # [b]: the grade is a cut of the row
        # Rows without this cut keep all entries, so that their unused value is finite.
        below = logits.masked_fill(~low & cut[:, None], -torch.inf).logsumexp(1, keepdim=True)
        terms = mean_over(negative_log_sigmoid(logits - below - margin), high)
        losses = losses + torch.where(cut, terms, 0.0)
        cuts = cuts + cut
    return losses / cuts.clamp(min=1)
