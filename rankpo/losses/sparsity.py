"""Sparsity: regularisation terms for sparse vectors, added to any loss, and a check for collapsed or dense vectors.

FLOPS is the squared mean activation of each vocabulary entry, summed: https://arxiv.org/abs/2004.05665 eq. 4, for SPLADE
https://arxiv.org/abs/2107.05720 eq. 4. The mean is over a whole update on all processes, so the value does not
depend on micro-batches. With the mean m as a constant, Σ_i ⟨m, w_i⟩ / N has the value of FLOPS and half its gradient,
so that micro-batches can be summed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rankpo.losses.base import require_choice, require_not_negative
from rankpo.types import Batch, LossOutput, Term

KINDS = ("flops", "l1")
QUERY, DOCUMENT = "sparsity_query", "sparsity_document"
ROLES = {QUERY: "query", DOCUMENT: "document"}


class CollapseError(RuntimeError):
    """Raised for a run whose vectors became zero or stay dense; the message names the key to change."""


@dataclass(frozen=True)
class Activity:
    """Sums over an update for queries and documents: weights [2, V], texts with an active entry [2, V], texts [2]."""

    weights: Tensor
    active: Tensor
    texts: Tensor

    def __add__(self, other: Activity) -> Activity:
        return Activity(self.weights + other.weights, self.active + other.active, self.texts + other.texts)

    def over_ranks(self, reduce: Callable[[Tensor], Tensor]) -> Activity:
        """Returns the sums over ranks. reduce: sums a tensor over ranks."""
        return Activity(reduce(self.weights), reduce(self.active), reduce(self.texts))


@dataclass(frozen=True, kw_only=True)
class Sparsity:
    """The keys of model.regularizer.

    kind: flops, or l1, which is the mean over texts of the sum of weights. query_weight, document_weight: λ_q and λ_d;
    0 disables the term of the role. The weights rise quadratically from 0 during the fraction `warmup` of the updates.
    query_threshold, document_threshold: texts with at most this number of active entries are not regularised
    (https://arxiv.org/abs/2504.14839). patience: the run ends after this number of consecutive updates in which vectors
    have less than one active entry on average, or, after the warm-up, documents have more than the fraction
    `dense_share` of the vocabulary active; None disables the check.
    """

    kind: str = "flops"
    query_weight: float = 5e-5
    document_weight: float = 3e-5
    warmup: float = 1 / 3
    query_threshold: int | None = None
    document_threshold: int | None = None
    dense_share: float = 0.25
    patience: int | None = 100

    def __post_init__(self) -> None:
        require_choice(KINDS, kind=self.kind)
        require_not_negative(query_weight=self.query_weight, document_weight=self.document_weight)
        for name in ("warmup", "dense_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        for name in ("query_threshold", "document_threshold"):
            if (value := getattr(self, name)) is not None and value < 0:
                raise ValueError(f"{name} must be >= 0 or null, got {value}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be >= 1 or null, got {self.patience}")

    @property
    def weights(self) -> Mapping[str, float]:
        return {QUERY: self.query_weight, DOCUMENT: self.document_weight}

    def factor(self, step: int, total_steps: int) -> float:
        """Returns the factor on the weights in update `step` (from 0), as in sentence-transformers' scheduler."""
        rising = max(1, int(total_steps * self.warmup))
        return 1.0 if not self.warmup else min(1.0, step / rising) ** 2

    @torch.no_grad()
    def activity(self, rows: Tensor, batch: Batch) -> Activity:
        """Sums over the queries and candidates of a batch. rows: [N, V] weights of its sequences."""
        shares = torch.stack([_query_slots(rows, batch), _document_slots(rows, batch)])  # [2, N]
        active = rows > 0
        kept = torch.stack([self._kept(active, self.query_threshold), self._kept(active, self.document_threshold)])
        return Activity((shares * kept) @ rows, shares @ active.to(rows.dtype), shares.sum(1))

    def _kept(self, active: Tensor, threshold: int | None) -> Tensor:
        """[N]: 1 for regularised texts, else 0."""
        count = active.sum(1)
        return torch.ones_like(count, dtype=torch.float32) if threshold is None else (count > threshold).float()

    def added(
        self, output: LossOutput, rows: Tensor, batch: Batch, activity: Activity, factor: float, queries: Tensor | None
    ) -> LossOutput:
        """Adds a term for each role with a weight, and metrics. rows: [N, V] weights of the sequences.

        activity: of the whole update. factor: of the weights. queries: indices [b] of the output's queries, on the CPU; None: all.
        """
        chosen = torch.arange(len(batch)) if queries is None else queries
        asked = chosen.to(rows.device, non_blocking=True)
        mask = batch.labels.mask[asked]
        texts = {QUERY: batch.queries[asked, None], DOCUMENT: batch.candidates[asked]}  # type: ignore[index]
        masks = {QUERY: torch.ones_like(texts[QUERY], dtype=torch.bool), DOCUMENT: mask}
        terms: dict[str, Term] = {}
        for role, (name, weight) in enumerate(self.weights.items()):
            if weight:
                values = self._values(rows, activity, role)[texts[name]] * masks[name]  # [b, G]
                sizes = masks[name].sum(1)
                terms[name] = Term(values.sum(1) / sizes, sizes.to(values.dtype), weight * factor)
        metrics = _metrics(rows, texts, masks, activity)
        return replace(output, terms={**output.terms, **terms}, metrics={**output.metrics, **metrics})

    def _values(self, rows: Tensor, activity: Activity, role: int) -> Tensor:
        """[N] contribution of each text to the term, with the gradient of the term."""
        threshold = (self.query_threshold, self.document_threshold)[role]
        kept = self._kept(rows > 0, threshold)
        if self.kind == "l1":
            return rows.sum(1) * kept
        value = (rows @ (activity.weights[role] / activity.texts[role])) * kept
        return value + (value - value.detach())  # FLOPS is quadratic, so its gradient is twice that of the value.

    def denominators(self, queries: int, documents: int) -> dict[str, float]:
        """Denominators of the terms: the numbers of queries and of candidates of the update."""
        sizes = {QUERY: float(queries), DOCUMENT: float(documents)}
        return {name: sizes[name] for name, weight in self.weights.items() if weight}

    def next_state(
        self, state: Mapping[str, float], means: Mapping[str, float], vocabulary: int, settled: bool
    ) -> dict[str, float]:
        """Counts consecutive updates with collapsed or dense vectors. means: of the metrics. settled: after the warm-up.

        Raises CollapseError when the count reaches `patience`.
        """
        zero = min(means[f"sparsity/{role}_active"] for role in ROLES.values()) < 1
        dense = settled and means["sparsity/document_active"] > self.dense_share * vocabulary
        counts = {"zero": (state.get("zero", 0) + 1) * zero, "dense": (state.get("dense", 0) + 1) * dense}
        if self.patience is not None:
            if counts["zero"] >= self.patience:
                raise CollapseError(self._collapsed(means))
            if counts["dense"] >= self.patience:
                raise CollapseError(self._dense(means, vocabulary))
        return counts

    def _collapsed(self, means: Mapping[str, float]) -> str:
        role = min(ROLES.values(), key=lambda name: means[f"sparsity/{name}_active"])
        weight = self.query_weight if role == "query" else self.document_weight
        remedy = (
            f"lower model.regularizer.{role}_weight (now {weight:g}) or raise model.regularizer.warmup"
            if weight
            else "lower optimizer.lr, since no regularisation is active"
        )
        return (
            f"the vectors have collapsed: for {self.patience} updates, {role} vectors had fewer than one active entry on "
            f"average ({means[f'sparsity/{role}_active']:.2f} in the last); {remedy}"
        )

    def _dense(self, means: Mapping[str, float], vocabulary: int) -> str:
        return (
            f"the vectors stay dense: for {self.patience} updates after the warm-up, document vectors had more than "
            f"{self.dense_share:.0%} of {vocabulary} entries active ({means['sparsity/document_active']:.0f} in the last); "
            f"raise model.regularizer.document_weight (now {self.document_weight:g}), or set "
            "model.regularizer.patience=null to disable this check"
        )


def _query_slots(rows: Tensor, batch: Batch) -> Tensor:
    """[N] number of times that each sequence is a query."""
    assert batch.queries is not None
    return torch.zeros(len(rows), device=rows.device).index_add(
        0, batch.queries, torch.ones_like(batch.queries).float()
    )


def _document_slots(rows: Tensor, batch: Batch) -> Tensor:
    """[N] number of times that each sequence is a candidate."""
    known = batch.on_cpu
    slots = known.candidates[known.labels.mask].to(rows.device, non_blocking=True)
    return torch.zeros(len(rows), device=rows.device).index_add(0, slots, torch.ones_like(slots).float())


@torch.no_grad()
def _metrics(
    rows: Tensor, texts: Mapping[str, Tensor], masks: Mapping[str, Tensor], activity: Activity
) -> dict[str, Tensor]:
    """[b] each: active entries of queries and documents, and the expected products of a query with a document."""
    active = (rows > 0).to(rows.dtype)
    count = active.sum(1)
    metrics = {
        f"sparsity/{role}_active": (count[texts[name]] * masks[name]).sum(1) / masks[name].sum(1)
        for name, role in ROLES.items()
    }
    shares = activity.active[1] / activity.texts[1]
    return {**metrics, "sparsity/flops": (active @ shares)[texts[QUERY][:, 0]]}
