"""M3 loss: InfoNCE of the parts of a hybrid model and of their sum, and distillation of each part from the sum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankpo.losses.base import require_not_negative
from rankpo.losses.contrastive import ContrastiveLoss
from rankpo.losses.pool import Pool
from rankpo.losses.vectors import Similarity
from rankpo.types import LossOutput, Vectors

OTHERS = ("query_query", "document_document", "symmetric")


@dataclass(frozen=True, kw_only=True)
class SelfDistillationLoss(ContrastiveLoss):
    """(L + L') / 2 of BGE-M3, https://arxiv.org/abs/2402.03216 section 3.3, on in-batch candidates.

    L = (Σ_i λ_i InfoNCE(s_i) + InfoNCE(s)) / (parts + 1), s the weighted sum of the parts' scores s_i, and
    L' = Σ_i λ_i H(softmax(s/τ), softmax(s_i/τ)) / parts, with the sum as a constant. part_weights: λ_i, in the order of
    model.parts. distillation: False means that the loss is L.
    """

    part_weights: tuple[float, ...] = (1.0, 0.1, 1.0)
    distillation: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for number, weight in enumerate(self.part_weights):
            require_not_negative(**{f"part_weights[{number}]": weight})
        if self.negatives != "in_batch":
            raise ValueError("the loss compares all candidates of an update; set negatives=in_batch")
        for name in OTHERS:
            if getattr(self, name):
                raise ValueError(f"{name}=true is supported only by loss=contrastive; set it to false")
        if self.matryoshka_dims is not None:
            raise ValueError("matryoshka_dims is not supported for models with several parts; set it to null")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"vectors", "parts"})

    def _against(self, vectors: Vectors, pool: Pool, similarity: Similarity) -> LossOutput:
        """similarity: gives [1 + parts, q, c], the sum first."""
        texts, asked = vectors.select(pool.rows), vectors.select(pool.query_rows)
        scores = similarity(asked.select(pool.query), texts)  # [1 + parts, b, P]
        parts = len(scores) - 1
        if len(self.part_weights) != parts:
            raise ValueError(f"part_weights has {len(self.part_weights)} weights, but the model has {parts} parts")
        kept, metrics = self._negatives(scores[0], pool)
        logits = torch.stack([self._logits(each, pool.target, pool.own, kept) for each in scores])
        target = pool.target[None, :, None].expand(len(scores), -1, 1)
        shares = logits.log_softmax(2)
        own = -shares.gather(2, target).squeeze(2)  # [1 + parts, b]
        weights = torch.tensor(self.part_weights, dtype=scores.dtype)[:, None].to(scores.device, non_blocking=True)
        losses = (own[0] + (weights * own[1:]).sum(0)) / (parts + 1)
        metrics["loss/contrastive"] = losses.detach()
        if self.distillation:
            learned = (weights * _cross_entropies(logits[0].detach(), shares[1:])).sum(0) / parts
            metrics["loss/distillation"] = learned.detach()
            losses = (losses + learned) / 2
        return LossOutput(losses, torch.ones_like(losses), metrics)


def _cross_entropies(teacher: Tensor, shares: Tensor) -> Tensor:
    """[parts, b] of teacher logits [b, P] and the parts' log-probabilities [parts, b, P]; -inf entries count 0."""
    target = teacher.softmax(1)
    return -(target * shares.masked_fill(target == 0, 0)).sum(2)
