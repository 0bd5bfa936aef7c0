"""Bi-encoders: encoders or decoders of transformers with one vector per text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from rankpo.data.text.conversations import plain_text
from rankpo.losses.vectors import inner_products
from rankpo.models.embedding.encoding import encode
from rankpo.models.embedding.has_prior import HasPrior
from rankpo.models.embedding.inputs import EmbeddingInputs
from rankpo.models.embedding.settings import EmbeddingSettings
from rankpo.models.embedding.sizes import check_sizes
from rankpo.models.layers import make_layers, read_weights
from rankpo.types import Batch, Prompt, Sequences, Vectors


class EmbeddingModel(HasPrior):
    """Pools and normalises hidden states. `forward(sequences)` returns embeddings [N, D] in float32."""

    kind: ClassVar[str] = "embedding"
    inputs: EmbeddingInputs
    settings: EmbeddingSettings

    def __init__(
        self,
        backbone: PreTrainedModel,
        inputs: EmbeddingInputs,
        *,
        layout: str = "auto",
        chunk_tokens: int | None = None,
        prior_lr: float | None = None,
    ) -> None:
        """prior_lr: the learning rate of the prior; None uses the optimizer's. Raises ConfigError for lengths, dimensions
        and layers that the backbone does not have."""
        super().__init__(backbone, inputs, layout=layout, chunk_tokens=chunk_tokens)
        layers, self.full_dim = self.settings.sized(self.width)
        self.layers = make_layers(layers)
        self.add_prior(prior_lr)
        check_sizes(self.settings, backbone, self.position_offset, self.full_dim)
        self.read_one_token(self.settings.pooling)

    def read_layers(self, folders: Sequence[Path]) -> None:
        """Reads the weights of the layers after the pooling, each from its own folder."""
        read_weights(self.layers, folders)

    def forward(self, sequences: Sequences) -> Tensor:
        vectors, features = self.parts(sequences)
        return self.with_prior(vectors, features, sequences)

    def parts(self, sequences: Sequences) -> tuple[Tensor, Tensor]:
        """[N, topic_dim] vectors without the prior, and the prior's features [N, K·H]; [N, 0] without a prior."""
        vectors = self.pooled_states(sequences)
        return self._finished(vectors[:, : self.own_width]), vectors[:, self.own_width :]

    def _finished(self, vectors: Tensor) -> Tensor:
        """Applies the layers, truncation and normalisation to pooled vectors; returns embeddings [N, D]."""
        with torch.autocast(vectors.device.type, enabled=False):
            for layer in self.layers:
                vectors = layer(vectors)
        if self.settings.truncate_dim is not None:
            vectors = vectors[:, : self.settings.truncate_dim]
        return normalize(vectors, dim=1) if self.settings.normalize else vectors

    def similarity(self, queries: Vectors, candidates: Vectors) -> Tensor:
        """[q, c] inner products (cosines if the model normalises)."""
        return inner_products(queries, candidates)

    def paired(self, queries: Vectors, candidates: Vectors) -> Tensor:
        return (queries.rows.float() * candidates.rows.float()).sum(1)

    def score(self, output: Tensor, batch: Batch) -> Tensor:
        """[B, G] inner products of each query with its own candidates, in float32."""
        assert batch.queries is not None
        queries, candidates = output[batch.queries], output[batch.candidates]  # [B, D], [B, G, D]
        return torch.einsum("bd,bgd->bg", queries.float(), candidates.float())

    def scores_of(self, query: Prompt, candidates: Sequence[str]) -> list[float]:
        """Inner products of embeddings; a conversation is read as plain text."""
        vectors = self.encode([plain_text(query)], role="query") @ self.encode(list(candidates)).T
        return [float(value) for value in vectors[0]]

    def encode(
        self,
        texts: Sequence[str] | str,
        role: str = "passage",
        *,
        devices: Sequence[str] | None = None,
        progress: bool = False,
    ) -> np.ndarray:
        """Returns embeddings [len(texts), D] in float32, in input order; [D] for one text. Equal texts are encoded once.

        role: "query" or "passage", which selects prompt and maximum length. devices: starts one process per device,
        such as ["cuda:0", "cuda:1"] or ["cpu", "cpu"]. progress: shows a progress bar. Raises ValueError for another
        role, and TypeError for values other than text.
        """
        return encode(self, texts, role, devices=devices, progress=progress)
