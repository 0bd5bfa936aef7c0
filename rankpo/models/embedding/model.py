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
from rankpo.models.base import in_order
from rankpo.models.embedding.encoding import encode
from rankpo.models.embedding.inputs import EmbeddingInputs
from rankpo.models.embedding.prior import Prior, make_prior, read_prior
from rankpo.models.embedding.settings import EmbeddingSettings
from rankpo.models.embedding.sizes import check_sizes
from rankpo.models.engine.body import body_of
from rankpo.models.engine.pooling import pool
from rankpo.models.layers import make_layers, read_weights
from rankpo.models.vectors import GivesVectors
from rankpo.types import Batch, Prompt, Sequences, Vectors


class EmbeddingModel(GivesVectors):
    """Hidden states, pooled and normalised: `forward(sequences)` gives [N, D] float32 embeddings."""

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
        """prior_lr: the learning rate of the prior, None for the optimizer's. Raises ConfigError for lengths, dimensions
        or layers that the backbone does not have."""
        super().__init__(backbone, inputs, layout=layout, chunk_tokens=chunk_tokens)
        layers, self.full_dim = self.settings.sized(self.width)
        self.layers = make_layers(layers)
        chosen = self.settings.prior_layers
        self.prior = make_prior(chosen, self.width, self.depth) if chosen else None
        self.prior_lr = prior_lr
        check_sizes(self.settings, backbone, self.position_offset, self.full_dim)

    def read_layers(self, folders: Sequence[Path]) -> None:
        """Reads the weights of the layers after the pooling, each from its own folder."""
        read_weights(self.layers, folders)

    def read_prior(self, folder: Path) -> None:
        """Reads the weights of the prior, if the model has one."""
        if self.prior is not None:
            read_prior(self.prior, folder)

    @property
    def width(self) -> int:
        """H, the size of a hidden state."""
        return int(self.base.config.get_text_config().hidden_size)

    @property
    def depth(self) -> int:
        """The number of layers of the backbone."""
        return int(self.base.config.get_text_config().num_hidden_layers)

    @property
    def dim(self) -> int:
        return self.topic_dim + (self.prior is not None)

    @property
    def topic_dim(self) -> int:
        """The dimensions of a vector without that of the prior."""
        return self.settings.truncate_dim or self.full_dim

    def forward(self, sequences: Sequences) -> Tensor:
        rows, pooled = [], []
        for chunk, hidden, lengths in self.hidden_states(sequences):
            rows.append(chunk)
            skipped = None if sequences.prefixes is None else sequences.prefixes[chunk, 1]
            pooled.append(self._pooled(hidden, lengths, skipped))
        vectors = in_order(pooled, rows, len(sequences), self.device)
        size = self.width * len(self.settings.pooling.split("+"))
        if vectors is None:  # All sequences are empty.
            further = 0 if self.prior is None else self.prior.weight.numel()
            vectors = torch.zeros(len(sequences), size + further, device=self.device)
        finished = self._finished(vectors[:, :size])
        return finished if self.prior is None else self._with_prior(self.prior, finished, vectors[:, size:], sequences)

    def _backbone(self, **arguments: object) -> Tensor:
        """The last hidden states, with those of the prior's layers beside them: [1, S, (1 + K)·H]."""
        if self.prior is None:
            return super()._backbone(**arguments)
        output = body_of(self.base)(**arguments, **self.constant_arguments, output_hidden_states=True)
        return torch.cat([output.last_hidden_state, *self.prior.selected(output.hidden_states)], dim=-1)

    def _pooled(self, hidden: Tensor, lengths: Tensor, skipped: Tensor | None) -> Tensor:
        """The pooled last hidden states, and the means of the prior's layers beside them."""
        if self.prior is None:
            return pool(hidden, lengths, self.settings.pooling, skipped)
        last, others = hidden[:, : self.width], hidden[:, self.width :]
        ways = (pool(last, lengths, self.settings.pooling, skipped), pool(others, lengths, "mean", skipped))
        return torch.cat(ways, dim=1)

    def _with_prior(self, prior: Prior, vectors: Tensor, features: Tensor, sequences: Sequences) -> Tensor:
        """The vectors with a last dimension: 1 for queries, λ·t for passages."""
        if sequences.prefixes is None:
            raise ValueError("a model with a prior needs the roles of its sequences: make them with its own inputs")
        queries = sequences.prefixes[:, 0].to(vectors.device).bool()
        with torch.autocast(vectors.device.type, enabled=False):
            values = prior(features.float()) * self.settings.prior_weight
        return torch.cat([vectors, torch.where(queries, 1.0, values)[:, None]], dim=1)

    def _finished(self, vectors: Tensor) -> Tensor:
        """[N, D] embeddings of pooled vectors: through the layers, cut and normalised."""
        with torch.autocast(vectors.device.type, enabled=False):
            for layer in self.layers:
                vectors = layer(vectors)
        if self.settings.truncate_dim is not None:
            vectors = vectors[:, : self.settings.truncate_dim]
        return normalize(vectors, dim=1) if self.settings.normalize else vectors

    def similarity(self, queries: Vectors, candidates: Vectors) -> Tensor:
        """[q, c] inner products (cosines if the model normalises)."""
        return inner_products(queries, candidates)

    def topic_similarity(self, queries: Vectors, candidates: Vectors) -> Tensor:
        """[q, c] `similarity` without the prior."""
        size = self.topic_dim
        return queries.rows[:, :size] @ candidates.rows[:, :size].T

    def score_parts(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """[B, G] each: the scores without the prior, and t of every candidate, so that `score` is the first + λ·second.

        Raises ValueError for a model without a prior.
        """
        if self.prior is None:
            raise ValueError("the model has no prior; set model.prior_layers")
        values = output[:, self.topic_dim][batch.candidates] / self.settings.prior_weight
        return self.score(output[:, : self.topic_dim], batch), values

    def learning_rates(self) -> dict[str, float]:
        return {} if self.prior is None or self.prior_lr is None else {"prior.weight": self.prior_lr}

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
        """Embeddings [len(texts), D] float32 in input order; one text gives [D]. Equal texts are encoded once.

        role: "query" or "passage", which chooses prompt and maximum length. devices: several, such as
        ["cuda:0", "cuda:1"] or ["cpu", "cpu"], encode in as many processes. progress: a bar on the terminal.
        Raises ValueError for another role, TypeError for anything that is not text.
        """
        return encode(self, texts, role, devices=devices, progress=progress)
