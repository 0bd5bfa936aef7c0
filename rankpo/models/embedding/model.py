"""Bi-encoders: encoders or decoders of transformers with one vector per text."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from rankpo.data.batch import select
from rankpo.errors import ConfigError
from rankpo.losses.vectors import inner_products
from rankpo.models.base import in_order
from rankpo.models.embedding.inputs import EmbeddingInputs
from rankpo.models.embedding.parallel import encode_in_processes
from rankpo.models.embedding.prior import Prior, make_prior
from rankpo.models.embedding.settings import EmbeddingSettings
from rankpo.models.engine.body import body_of
from rankpo.models.engine.pooling import pool
from rankpo.models.layers import make_layers
from rankpo.models.vectors import ENCODE_TOKENS, GivesVectors, by_tokens
from rankpo.runs.logger import counting
from rankpo.types import Batch, Sequences, Vectors

if TYPE_CHECKING:
    from rankpo.data.table import ExampleTable


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
        _check_sizes(self.settings, backbone, self.position_offset, self.full_dim)

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
        vectors, features = self.parts(sequences)
        return vectors if self.prior is None else self._with_prior(self.prior, vectors, features, sequences)

    def parts(self, sequences: Sequences) -> tuple[Tensor, Tensor]:
        """[N, topic_dim] vectors without the prior, and the prior's features [N, K·H]; [N, 0] without a prior."""
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
        return self._finished(vectors[:, :size]), vectors[:, size:]

    @torch.no_grad()
    def frozen_parts(self, table: ExampleTable, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """`parts` of passages of a table, on the CPU, in evaluation mode. rows: [n] of the table."""
        keys = [self.inputs.key(row, "candidate") for row in rows.tolist()]
        sequences = self.inputs.sequences(table, keys)
        order = torch.argsort(sequences.lengths, descending=True, stable=True)
        vectors, features = [], []
        with self.evaluating():
            for block in by_tokens(order, sequences.lengths, ENCODE_TOKENS):
                of_block = self.parts(select(sequences, block.numpy()))
                vectors.append(of_block[0].float().cpu())
                features.append(of_block[1].float().cpu())
        back = torch.argsort(order)
        return torch.cat(vectors)[back], torch.cat(features)[back]

    def set_prior(self, weights: Tensor, weight: float) -> None:
        """Replaces the prior's weights and λ. weights: [K, H], or as many in one row. Raises ValueError without a prior."""
        if self.prior is None:
            raise ValueError("the model has no prior; set model.prior_layers")
        with torch.no_grad():
            self.prior.weight.copy_(weights.to(self.prior.weight).view_as(self.prior.weight))
        self.settings = self.inputs.settings = replace(self.settings, prior_weight=weight)

    def replace_prior(self, prior: Prior | None, weight: float = 1.0) -> None:
        """Gives the model a copy of another prior, or none. weight: λ."""
        self.prior = None if prior is None else copy.deepcopy(prior).to(self.device)
        layers = () if prior is None else prior.layers
        self.settings = self.inputs.settings = replace(self.settings, prior_layers=layers, prior_weight=weight)

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
        return pair_scores(output[:, : self.topic_dim], batch), values

    def learning_rates(self) -> dict[str, float]:
        return {} if self.prior is None or self.prior_lr is None else {"prior.weight": self.prior_lr}

    def paired(self, queries: Vectors, candidates: Vectors) -> Tensor:
        return (queries.rows.float() * candidates.rows.float()).sum(1)

    def score(self, output: Tensor, batch: Batch) -> Tensor:
        """[B, G] inner products of queries and their candidates."""
        return pair_scores(output, batch)

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
