"""Models of the kind `toy`."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rankpo.models.vectors import GivesVectors
from rankpo.types import Sequences, Vectors


class ToyModel(GivesVectors):
    """`forward(sequences)` gives [N, D]: the maximum of the hidden states over each sequence's tokens, of length 1."""

    kind: ClassVar[str] = "toy"

    @property
    def dim(self) -> int:
        return int(self.base.config.hidden_size)

    def forward(self, sequences: Sequences) -> Tensor:
        rows, pooled = [], []
        for chunk, hidden, lengths in self.hidden_states(sequences):
            rows.append(chunk)
            pooled += [part.amax(0) for part in hidden.float().split(lengths.tolist())]
        if not rows:
            return torch.zeros(0, self.dim, device=self.device)
        order = torch.argsort(torch.cat(rows)).to(self.device)
        return normalize(torch.stack(pooled)[order], dim=1)

    def similarity(self, queries: Vectors, candidates: Vectors) -> Tensor:
        return queries.rows.float() @ candidates.rows.float().T

    def paired(self, queries: Vectors, candidates: Vectors) -> Tensor:
        return (queries.rows.float() * candidates.rows.float()).sum(1)
