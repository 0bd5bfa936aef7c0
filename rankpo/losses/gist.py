"""GISTEmbed loss: InfoNCE with a guide model that filters the negatives of a whole update."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rankpo.losses.base import require_choice, require_not_negative, require_positive
from rankpo.losses.maths import at_least_float32
from rankpo.losses.matryoshka import matryoshka
from rankpo.losses.nested import NestedInBatchLoss
from rankpo.losses.pool import Pool, build_pool
from rankpo.losses.vectors import Similarity, inner_products, one_each, taken
from rankpo.types import Batch, LossOutput, TeacherVectors, Vectors


@dataclass(frozen=True, kw_only=True)
class GISTLoss(NestedInBatchLoss):
    """-s_p/τ + log Σ_j e^{s_j/τ} of cosines s, over candidates that the guide finds less similar than the positive.

    https://arxiv.org/abs/2402.16829 eqs. 3 to 7. guide: folder of an embedding model, or None for the model that
    the run starts from; its embeddings of all texts are computed once, before the run, and cached under cache_dir. With
    g the guide's cosines, the loss drops candidates with g_j > g_p - margin (`absolute`) or g_j > g_p - margin·abs(g_p)
    (`relative`), and texts known to be relevant. The candidates are all passages of the update; with contrast_anchors
    also the query against other queries; with contrast_positives also the positive against the positives of other
    queries.
    """

    guide: str | None = None
    temperature: float = 0.01
    margin: float = 0.0
    margin_strategy: str = "absolute"
    contrast_anchors: bool = True
    contrast_positives: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(temperature=self.temperature)
        require_not_negative(margin=self.margin)
        require_choice(("absolute", "relative"), margin_strategy=self.margin_strategy)

    @property
    def by_inner_products(self) -> bool:
        return False

    @property
    def knows(self) -> frozenset[str]:
        return frozenset({"positives", "teacher"})

    @property
    def teacher_model(self) -> str | None:
        return self.guide

    def in_batch(
        self,
        embeddings: Tensor | Vectors,
        batch: Batch,
        queries: Tensor | None = None,
        similarity: Similarity = inner_products,
    ) -> LossOutput:
        teacher = batch.teacher
        if teacher is None:
            raise ValueError("GISTLoss needs the guide's embeddings, Batch.teacher, got None")
        pool = build_pool(batch, queries, deduplicate=True)
        positives = torch.searchsorted(pool.rows, batch.on_cpu.candidates[:, 0].unique())  # [columns]
        rows = one_each(embeddings, type(self).__name__)
        with torch.autocast(rows.device.type, enabled=False):
            return matryoshka(
                lambda cut: self._against(normalize(cut, dim=1), pool, positives, teacher), rows, self.matryoshka
            )

    def _against(self, vectors: Tensor, pool: Pool, positives: Tensor, teacher: TeacherVectors) -> LossOutput:
        texts, asked = taken(vectors, pool.rows), taken(vectors, pool.query_rows)
        guide_texts = normalize(at_least_float32(taken(teacher.candidates, pool.rows)), dim=1)
        guide_asked = normalize(at_least_float32(taken(teacher.queries, pool.query_rows)), dim=1)
        itself, target = pool.itself, pool.target
        query, positive = asked[itself], texts[target]  # [b, D]
        guide_query, guide_positive = guide_asked[itself], guide_texts[target]
        level = self._level((guide_query * guide_positive).sum(1, keepdim=True))  # [b, 1]

        scores = query @ texts.T  # [b, P]
        own = torch.zeros_like(pool.own).scatter(1, target[:, None], True)
        alone = torch.zeros_like(own[:, :1]) if pool.alone is None else pool.alone[:, None]
        dropped = ((guide_query @ guide_texts.T > level) | pool.known | (alone & ~pool.own)) & ~own
        parts = [scores.masked_fill(dropped, -torch.inf)]
        if self.contrast_anchors:
            hidden = (guide_query @ guide_asked.T > level) | pool.same_query | alone
            parts.append((query @ asked.T).masked_fill(hidden, -torch.inf))
        if self.contrast_positives:
            columns = positives.to(scores.device, non_blocking=True)
            hidden = (guide_positive @ guide_texts[columns].T > level) | pool.known[:, columns] | alone
            parts.append((positive @ texts[columns].T).masked_fill(hidden, -torch.inf))
        logits = torch.cat(parts, 1) / self.temperature
        losses = -logits.log_softmax(1).gather(1, target[:, None])[:, 0]
        return LossOutput(losses, torch.ones_like(losses), _metrics(scores.detach(), target, dropped, own))

    def _level(self, positive: Tensor) -> Tensor:
        """The threshold of the guide's cosine above which a candidate is dropped, from the cosine of the positive."""
        return positive - self.margin * (positive.abs() if self.margin_strategy == "relative" else 1.0)


def _metrics(scores: Tensor, target: Tensor, dropped: Tensor, own: Tensor) -> dict[str, Tensor]:
    """Returns `scores/*` [b]: the positive's score, the hardest kept passage's (the positive's if none is kept),
    whether the positive ranks first, and the share of dropped passages."""
    chosen = scores.gather(1, target[:, None])[:, 0]
    kept = ~dropped & ~own
    hardest = torch.where(kept.any(1), scores.masked_fill(~kept, -torch.inf).amax(1), chosen)
    return {
        "scores/positive": chosen,
        "scores/negative": hardest,
        "scores/accuracies": ((chosen > hardest) | ~kept.any(1)).to(scores.dtype),
        "scores/false_negatives": dropped.sum(1) / (~own).sum(1).clamp(min=1),
    }
