"""Bi-encoders: encoders or decoders of transformers with one vector per text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from rankpo.data.text.conversations import plain_text
from rankpo.errors import ConfigError
from rankpo.losses.vectors import inner_products
from rankpo.models.base import in_order
from rankpo.models.embedding.inputs import EmbeddingInputs
from rankpo.models.embedding.layers import make_layers, read_weights
from rankpo.models.embedding.parallel import encode_in_processes
from rankpo.models.embedding.settings import EmbeddingSettings
from rankpo.models.engine.pooling import pool
from rankpo.models.vectors import GivesVectors
from rankpo.runs.logger import counting
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
    ) -> None:
        """Raises ConfigError for lengths or dimensions that the backbone does not have."""
        super().__init__(backbone, inputs, layout=layout, chunk_tokens=chunk_tokens)
        layers, self.full_dim = self.settings.sized(int(self.base.config.get_text_config().hidden_size))
        self.layers = make_layers(layers)
        _check_sizes(self.settings, backbone, self.position_offset, self.full_dim)

    def read_layers(self, folders: Sequence[Path]) -> None:
        """Reads the weights of the layers after the pooling, each from its own folder."""
        read_weights(self.layers, folders)

    @property
    def dim(self) -> int:
        return self.settings.truncate_dim or self.full_dim

    def forward(self, sequences: Sequences) -> Tensor:
        rows, pooled = [], []
        for chunk, hidden, lengths in self.hidden_states(sequences):
            rows.append(chunk)
            skipped = None if sequences.prefixes is None else sequences.prefixes[chunk, 1]
            pooled.append(pool(hidden, lengths, self.settings.pooling, skipped))
        vectors = in_order(pooled, rows, len(sequences), self.device)
        if vectors is None:  # All sequences are empty.
            width = self.base.config.get_text_config().hidden_size * len(self.settings.pooling.split("+"))
            vectors = torch.zeros(len(sequences), width, device=self.device)
        return self._finished(vectors)

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

    def paired(self, queries: Vectors, candidates: Vectors) -> Tensor:
        return (queries.rows.float() * candidates.rows.float()).sum(1)

    def score(self, output: Tensor, batch: Batch) -> Tensor:
        """[B, G] inner products of queries and their candidates."""
        return pair_scores(output, batch)

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
        if role not in ("query", "passage"):
            raise ValueError(f"role must be query or passage, got {role!r}")
        several = [texts] if isinstance(texts, str) else list(texts)
        for index, text in enumerate(several):
            if not isinstance(text, str):
                raise TypeError(f"texts[{index}] must be a string, got {type(text).__name__}")
        if not several:
            return np.zeros((0, self.dim), dtype=np.float32)
        distinct = {text: number for number, text in enumerate(dict.fromkeys(several))}
        sequences = self.inputs.sequences_of(list(distinct), "query" if role == "query" else "candidate")
        if devices is not None and not len(devices):
            raise ValueError("devices must name at least one device, such as cpu, or be None")
        if devices is not None:
            encode = partial(encode_in_processes, self, sequences, devices)
        else:
            encode = partial(self.encode_sequences, sequences)
        with counting("encode", len(sequences), shown=progress) as advance:
            embeddings = encode(advance)
        rows = embeddings.numpy()[[distinct[text] for text in several]]
        return rows[0] if isinstance(texts, str) else rows


def pair_scores(embeddings: Tensor, batch: Batch) -> Tensor:
    """[B, G] inner products of each query with its own candidates, in float32."""
    assert batch.queries is not None
    queries, candidates = embeddings[batch.queries], embeddings[batch.candidates]  # [B, D], [B, G, D]
    return torch.einsum("bd,bgd->bg", queries.float(), candidates.float())


def _check_sizes(settings: EmbeddingSettings, backbone: PreTrainedModel, offset: int, full_dim: int) -> None:
    """Raises ConfigError for a length above the model's usable positions (XLM-R: 514 rows give 512) and for more
    dimensions than it has.
    """
    config = backbone.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    usable = None if limit is None else int(limit) - offset
    problems = [
        f"model.{name}={asked}, but the model has {usable} positions; lower it to {usable} or less"
        for name in ("query_max_length", "passage_max_length")
        if usable is not None and (asked := getattr(settings, name)) > usable
    ]
    if settings.truncate_dim is not None and settings.truncate_dim > full_dim:
        problems.append(f"model.truncate_dim={settings.truncate_dim}, but the model has {full_dim} dimensions")
    if problems:
        raise ConfigError(problems)
