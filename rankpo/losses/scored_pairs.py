"""Losses on scored pairs of texts for semantic similarity: CoSENT, AnglE, squared error of the cosine."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from rankpo.losses.base import require_positive
from rankpo.losses.pairs_of_update import Pairs, PairwiseInBatchLoss, cosines
from rankpo.losses.vectors import taken


@dataclass(frozen=True, kw_only=True)
class CoSENTLoss(PairwiseInBatchLoss):
    """log(1 + Σ e^{(s_j - s_i)/τ}) over all pairs i, j of pairs of texts with label_i > label_j, s the cosine.

    https://kexue.fm/archives/8847. The whole update has one value, which depends on the order of the labels only.
    """

    temperature: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(temperature=self.temperature)

    def similarity(self, left: Tensor, right: Tensor) -> Tensor:
        """Similarities [n] of rows [n, D]."""
        return cosines(left, right)

    def of_update(self, embeddings: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        scores = self.similarity(taken(embeddings, pairs.left), taken(embeddings, pairs.right))
        gaps = (scores[None, :] - scores[:, None]) / self.temperature  # [i, j]
        ordered = (pairs.labels[:, None] > pairs.labels[None, :]).flatten().nonzero().squeeze(1)  # On the CPU.
        value = torch.cat([gaps.new_zeros(1), taken(gaps.flatten(), ordered)]).logsumexp(0)
        return value.expand(len(scores)), scores  # The mean over pairs is the value.


@dataclass(frozen=True, kw_only=True)
class AnglELoss(CoSENTLoss):
    """CoSENT on the similarity of angles, abs(cosine + sine) with dimensions k and k + D/2 as a complex number.

    https://arxiv.org/abs/2309.12871 eqs. 7 and 8, without its other two terms. Unlike the cosine, it does not
    saturate near 1 and -1.
    """

    def similarity(self, left: Tensor, right: Tensor) -> Tensor:
        odd = left.shape[1] % 2  # An odd size gets a dimension of zeros.
        x, y = (pad(normalize(rows, dim=1), (0, odd)) for rows in (left, right))
        (real_x, imaginary_x), (real_y, imaginary_y) = x.chunk(2, dim=1), y.chunk(2, dim=1)
        sines = (imaginary_x * real_y - real_x * imaginary_y).sum(1)
        return ((x * y).sum(1) + sines).abs()


@dataclass(frozen=True, kw_only=True)
class CosineMSELoss(PairwiseInBatchLoss):
    """Mean over pairs of (cosine - label)². Raises ValueError for labels outside [-1, 1]."""

    def check(self, labels: Tensor) -> None:
        outside = labels[(labels < -1) | (labels > 1)]
        if len(outside):
            raise ValueError(
                f"loss=cosine_mse needs labels in [-1, 1], got {float(outside[0]):g}; set datasets.<name>.min_label and "
                "max_label to the range of its labels"
            )

    def of_update(self, embeddings: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        scores = cosines(taken(embeddings, pairs.left), taken(embeddings, pairs.right))
        return (scores - pairs.labels.to(scores.device, scores.dtype, non_blocking=True)).square(), scores
