"""Rescaled: a model with a variable weight of its prior, which encodes each text once for several evaluations."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from rankpo.models.embedding.model import EmbeddingModel
from rankpo.models.vectors import GivesVectors, OnProgress
from rankpo.types import Sequences, Vectors


class Rescaled(GivesVectors):
    """Returns the vectors of `model` with the prior multiplied by `prior_weight` instead of the model's own weight.

    The vectors of every distinct set of sequences are computed once and stored on the CPU, so that memory grows with
    the evaluated collections. prior_weight=0 removes the prior from the scores. The model must have a prior.
    """

    kind = EmbeddingModel.kind

    def __init__(self, model: EmbeddingModel) -> None:
        nn.Module.__init__(self)  # The wrapped model holds the backbone.
        self.model = model
        self.inputs, self.settings, self.tokenizer = model.inputs, model.settings, model.tokenizer
        self.prior_weight = model.settings.prior_weight
        self._known: dict[bytes, Tensor] = {}

    @property
    def dim(self) -> int:
        return self.model.dim

    def forward(self, sequences: Sequences) -> Tensor:
        return self._scaled(self.model(sequences), sequences)

    def similarity(self, queries: Vectors, candidates: Vectors) -> Tensor:
        return self.model.similarity(queries, candidates)

    def paired(self, queries: Vectors, candidates: Vectors) -> Tensor:
        return self.model.paired(queries, candidates)

    def encode_sequences(self, sequences: Sequences, on_progress: OnProgress | None = None) -> Tensor:
        key = _key(sequences)
        if key not in self._known:
            self._known[key] = self.model.encode_sequences(sequences, on_progress)
        return self._scaled(self._known[key], sequences)

    def _scaled(self, vectors: Tensor, sequences: Sequences) -> Tensor:
        assert sequences.prefixes is not None
        passages = ~sequences.prefixes[:, 0].to(vectors.device).bool()
        scaled = vectors.clone()
        scaled[passages, -1] *= self.prior_weight / self.model.settings.prior_weight
        return scaled


def _key(sequences: Sequences) -> bytes:
    digest = hashlib.sha256()
    for tensor in (sequences.input_ids, sequences.lengths, sequences.prefixes):
        if tensor is not None:
            digest.update(tensor.cpu().to(torch.int64).numpy().tobytes())
    return digest.digest()
