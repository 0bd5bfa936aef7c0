"""HasPrior: base of bi-encoders with an optional prior of passages, see prior.py."""

from __future__ import annotations

import copy
from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from rankpo.data.batch import select
from rankpo.models.embedding.pooled_states import PooledStates
from rankpo.models.embedding.prior import Prior, check_layers, make_prior, read_prior
from rankpo.models.embedding.settings import EmbeddingSettings
from rankpo.models.engine.body import body_of
from rankpo.models.engine.pooling import in_order, pool
from rankpo.models.layers import Dense
from rankpo.models.vectors import ENCODE_TOKENS, EncodesTexts, by_tokens
from rankpo.types import Batch, Sequences, Vectors

if TYPE_CHECKING:
    from rankpo.data.table import ExampleTable


class HasPrior(EncodesTexts):
    """Base of `EmbeddingModel`: sizes, pooling, and a last dimension for the prior if there is one.

    full_dim: the dimensions of a vector before it is cut. prior_lr: the learning rate of the prior; None uses
    the optimizer's.
    """

    settings: EmbeddingSettings
    full_dim: int
    prior: Prior | None
    layers: nn.ModuleList
    memory: PooledStates | None = None
    prior_lr: float | None

    def add_prior(self, prior_lr: float | None) -> None:
        """Creates the prior of model.prior_layers. Raises ConfigError for layers that the backbone does not have."""
        chosen = self.settings.prior_layers
        if self.settings.pooled_layers:
            check_layers("pooled_layers", self.settings.pooled_layers, self.depth)
        self.prior = make_prior(chosen, self.width, self.depth) if chosen else None
        self.prior_lr = prior_lr

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
    def metric(self) -> str:
        return "cosine" if self.settings.normalize and self.prior is None else "dot"

    @property
    def topic_dim(self) -> int:
        """The dimensions of a vector without the one for the prior."""
        return self.settings.truncate_dim or self.full_dim

    @property
    def pooled_width(self) -> int:
        """The columns of the result of `pooled`."""
        further = 0 if self.prior is None else self.prior.weight.numel()
        return self.own_width + further

    @property
    def own_width(self) -> int:
        """The size of a text's pooled states without those of the prior's layers."""
        return self.width * self.settings.num_pooled

    @property
    def read_layers_of(self) -> tuple[int, ...]:
        """The layers whose hidden states stand beside the last ones: the pooled ones, and then the prior's."""
        return (*self.settings.pooled_layers, *self.settings.prior_layers)

    def _backbone(self, **arguments: object) -> Tensor:
        """The last hidden states, with those of `read_layers_of` beside them: [1, S, (1 + K)·H]."""
        if not self.read_layers_of:
            return super()._backbone(**arguments)
        output = body_of(self.base)(**arguments, **self.constant_arguments, output_hidden_states=True)
        states = [output.hidden_states[layer] for layer in self.read_layers_of]
        return torch.cat([output.last_hidden_state, *states], dim=-1)

    def pooled(self, hidden: Tensor, lengths: Tensor, skipped: Tensor | None) -> Tensor:
        """The pooled states of the last layer or of the pooled ones, and the means of the prior's layers beside them."""
        if not self.read_layers_of:
            return pool(hidden, lengths, self.settings.pooling, skipped)
        count = len(self.settings.pooled_layers)
        first, middle = (0, self.width) if not count else (self.width, self.width * (1 + count))
        own = pool(hidden[:, first:middle], lengths, self.settings.pooling, skipped)
        return torch.cat([own, pool(hidden[:, self.width * (1 + count) :], lengths, "mean", skipped)], dim=1)

    def start_layers(self) -> None:
        """Makes new layers change nothing at first where they can: a linear Dense begins as the identity on the last
        dimensions that it reads, which are the pooled states of the last of several layers."""
        with torch.no_grad():
            for layer in self.layers:
                if isinstance(layer, Dense) and isinstance(layer.activation, nn.Identity) and not layer.adds:
                    rows, columns = layer.linear.weight.shape
                    kept = torch.eye(min(rows, columns))
                    layer.linear.weight.zero_()
                    layer.linear.weight[: len(kept), columns - len(kept) :] = kept
                    if layer.linear.bias is not None:
                        layer.linear.bias.zero_()

    def freeze_backbone(self) -> None:
        """Trains the layers after the pooling and the prior alone; the pooled states of each text are computed once."""
        self.base.requires_grad_(False)
        self.memory = memory = PooledStates(self._pooled_states, self)
        self.register_load_state_dict_post_hook(lambda *_: memory.forget())

    def _pooled_states(self, sequences: Sequences) -> Tensor:
        """[N, pooled_width] pooled states."""
        rows, pooled = [], []
        skipped = None if sequences.prefixes is None else sequences.prefixes[:, 1]
        read = None if self.read_layers_of else self.settings.pooling
        for chunk, hidden, lengths in self.hidden_states(sequences, read, skipped):
            rows.append(chunk)
            pooled.append(self.pooled(hidden, lengths, None if skipped is None else skipped[chunk]))
        vectors = in_order(pooled, rows, len(sequences), self.device)
        if vectors is None:  # All sequences are empty.
            vectors = torch.zeros(len(sequences), self.pooled_width, device=self.device)
        return vectors

    def pooled_states(self, sequences: Sequences) -> Tensor:
        """[N, pooled_width] pooled states; those of a frozen backbone are computed once for each text."""
        return self._pooled_states(sequences) if self.memory is None else self.memory.of(sequences)

    @abstractmethod
    def parts(self, sequences: Sequences) -> tuple[Tensor, Tensor]:
        """[N, topic_dim] vectors without the prior, and the prior's features [N, K·H]; [N, 0] without a prior."""

    def with_prior(self, vectors: Tensor, features: Tensor, sequences: Sequences) -> Tensor:
        """[N, D] vectors; a prior adds a last dimension, which is 1 for queries and λ·t for passages."""
        if self.prior is None:
            return vectors
        if sequences.prefixes is None:
            raise ValueError(
                "a model with a prior needs the roles of its sequences; create the sequences with model.inputs"
            )
        queries = sequences.prefixes[:, 0].to(vectors.device, non_blocking=True).bool()
        with torch.autocast(vectors.device.type, enabled=False):
            values = self.prior(features.float()) * self.settings.prior_weight
        return torch.cat([vectors, torch.where(queries, 1.0, values)[:, None]], dim=1)

    def topic_similarity(self, queries: Vectors, candidates: Vectors) -> Tensor:
        """[q, c] `similarity` without the prior."""
        size = self.topic_dim
        return queries.rows[:, :size] @ candidates.rows[:, :size].T

    def score_parts(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns two tensors [B, G]: the scores without the prior, and t of every candidate. `score` is first + λ·second.

        Raises ValueError for a model without a prior.
        """
        if self.prior is None:
            raise ValueError("the model has no prior; set model.prior_layers")
        values = output[:, self.topic_dim][batch.candidates] / self.settings.prior_weight
        return self.score(output[:, : self.topic_dim], batch), values

    def learning_rates(self) -> dict[str, float]:
        return {} if self.prior is None or self.prior_lr is None else {"prior.weight": self.prior_lr}

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
        """Replaces the prior's weights and λ. weights: [K, H] or [K·H]. Raises ValueError without a prior."""
        if self.prior is None:
            raise ValueError("the model has no prior; set model.prior_layers")
        with torch.no_grad():
            self.prior.weight.copy_(weights.to(self.prior.weight).view_as(self.prior.weight))
        self.settings = self.inputs.settings = replace(self.settings, prior_weight=weight)

    def replace_prior(self, prior: Prior | None, weight: float = 1.0) -> None:
        """Replaces the prior by a copy of another one, or removes it. weight: λ."""
        self.prior = None if prior is None else copy.deepcopy(prior).to(self.device)
        layers = () if prior is None else prior.layers
        if self.memory is not None:
            self.memory.forget()
        self.settings = self.inputs.settings = replace(self.settings, prior_layers=layers, prior_weight=weight)
