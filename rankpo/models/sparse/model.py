"""Sparse models (SPLADE): encoders with a masked-language head and one weight per entry of the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor, nn
from transformers import PreTrainedModel

from rankpo.data.batch import join, select
from rankpo.errors import ConfigError
from rankpo.models.engine.pooling import in_order
from rankpo.models.engine.positions import usable_positions
from rankpo.models.engine.sparse_vectors import COLUMNS, compact, joined, paired_products, products, to_csr
from rankpo.models.engine.vocabulary_pooling import pool_vocabulary
from rankpo.models.sparse.heads import find_transform, output_head
from rankpo.models.sparse.inputs import SparseInputs
from rankpo.models.sparse.settings import SparseSettings
from rankpo.models.vectors import EncodesTexts, OnProgress, by_tokens
from rankpo.runs.logger import counting
from rankpo.types import Batch, Sequences, Vectors

if TYPE_CHECKING:
    from rankpo.data.table import ExampleTable

TEXTS_AT_ONCE = 256  # Dense rows of the vocabulary's size in memory while a corpus is encoded.
TOKENS_AT_ONCE = 16384
TYPICAL_ENTRIES = 256  # Active entries of a trained model's passages.


class SparseModel(EncodesTexts):
    """Pools the activations of the output head. `forward(sequences)` returns non-negative weights [N, V] in float32.

    query_weights: [V] a parameter with the weight of each query token if query_encoder=static, else None.
    """

    kind: ClassVar[str] = "sparse"
    inputs: SparseInputs
    settings: SparseSettings

    def __init__(
        self,
        backbone: PreTrainedModel,
        inputs: SparseInputs,
        *,
        layout: str = "auto",
        chunk_tokens: int | None = None,
    ) -> None:
        """Raises ValueError for an unknown head, ConfigError for lengths above the backbone's positions."""
        super().__init__(backbone, inputs, layout=layout, chunk_tokens=chunk_tokens)
        self.transform = find_transform(self.base, self.packed)
        self.entries = len(output_head(self.base).weight)
        self.query_weights: nn.Parameter | None = None
        if inputs.static:
            frozen = self.settings.freeze_query_weights
            self.query_weights = nn.Parameter(torch.ones(self.entries), requires_grad=not frozen)
        self.max_active = self.settings.max_active
        self._check_lengths()

    @property
    def dim(self) -> int:
        return self.entries

    @property
    def vocabulary(self) -> int:
        return self.entries

    def forward(self, sequences: Sequences) -> Tensor:
        return self._pooled(sequences) if self.query_weights is None else self._with_static(sequences)

    def _pooled(self, sequences: Sequences) -> Tensor:
        rows, pooled = [], []
        for chunk, hidden, lengths in self.hidden_states(sequences):
            rows.append(chunk)
            states = self.transform.apply(self.base, hidden)
            head, settings = output_head(self.base), self.settings
            pooled.append(
                pool_vocabulary(states, lengths, head, pooling=settings.pooling, activation=settings.activation)
            )
        weights = in_order(pooled, rows, len(sequences), self.device)
        return torch.zeros(len(sequences), self.dim, device=self.device) if weights is None else weights

    def pooled_logits(self, logits: Tensor, mask: Tensor) -> Tensor:
        """[n, V] weights from the logits [n, T, V] of the output head. mask: [n, T], 1 at tokens."""
        active = logits.float().relu().log1p()
        if self.settings.activation == "log1p_relu":
            active = active.log1p()
        active = active * mask[:, :, None]
        return active.amax(1) if self.settings.pooling == "max" else active.sum(1)

    def _with_static(self, sequences: Sequences) -> Tensor:
        """[N, V] weights, those of queries from `query_weights`."""
        assert self.query_weights is not None and sequences.prefixes is not None
        asked = sequences.prefixes[:, 0].bool()
        queries, texts = asked.nonzero().squeeze(1), (~asked).nonzero().squeeze(1)
        # Every call uses the backbone and all weights, since DDP and sharded parameters need equal calls on all ranks.
        read = select(sequences, texts.numpy()) if len(texts) else self._shortest()
        pooled = self._pooled(read)[: len(texts)] + 0 * self.query_weights.sum()
        if not len(texts):
            pooled = pooled + 0 * self._pooled(read).sum()
        own = self._presence(select(sequences, queries.numpy())) * self.query_weights
        order = torch.argsort(torch.cat([queries, texts])).to(own.device, non_blocking=True)
        return torch.cat([own, pooled])[order]

    def _shortest(self) -> Sequences:
        """A passage of special tokens only, or of one token if the tokenizer adds none."""
        special = [*self.inputs.special.head, *self.inputs.special.tail] or [0]
        return join([np.array(special, dtype=np.int64)])

    def _presence(self, sequences: Sequences) -> Tensor:
        """[n, V]: 1 for tokens that occur in the sequence, else 0."""
        owner = torch.arange(len(sequences)).repeat_interleave(sequences.lengths).to(self.device, non_blocking=True)
        present = torch.zeros(len(sequences), self.dim, device=self.device)
        present[owner, sequences.input_ids.to(self.device, non_blocking=True)] = 1
        return present

    def similarity(self, queries: Vectors, candidates: Vectors) -> Tensor:
        """[q, c] inner products."""
        return queries.rows.float() @ candidates.rows.float().T

    def paired(self, queries: Vectors, candidates: Vectors) -> Tensor:
        return (queries.rows.float() * candidates.rows.float()).sum(1)

    def score(self, output: Tensor, batch: Batch) -> Tensor:
        """[B, G] inner products of queries and their candidates, without a [B, G, V] copy of the candidates."""
        assert batch.queries is not None
        scores = output[batch.queries].float() @ output.float().T  # [B, N]
        return scores.gather(1, batch.candidates)

    stored_form: ClassVar[str] = "sparse"

    @property
    def typical_size(self) -> int:
        return COLUMNS * (self.max_active or TYPICAL_ENTRIES)

    @property
    def stored_dim(self) -> int:
        return COLUMNS

    @torch.no_grad()
    def encode_vectors(self, sequences: Sequences, on_progress: OnProgress | None = None) -> Vectors:
        order = torch.argsort(sequences.lengths, descending=True, stable=True)
        costs = sequences.lengths.clamp(min=TOKENS_AT_ONCE // TEXTS_AT_ONCE)
        parts = []
        with self.evaluating():
            for rows in by_tokens(order, costs, TOKENS_AT_ONCE):
                parts.append(compact(self(select(sequences, rows.numpy())), self.max_active))
                if on_progress is not None:
                    on_progress(len(rows))
        return joined(parts).select(torch.argsort(order))

    def stored_similarity(self, queries: Vectors, candidates: Vectors) -> Tensor:
        return products(queries, candidates, self.dim)

    def stored_paired(self, queries: Vectors, candidates: Vectors) -> Tensor:
        return paired_products(queries, candidates, self.dim)

    def slot_scores(self, table: ExampleTable) -> np.ndarray:
        """[slots] scores from vectors with all entries, as in training, so that they can be reference scores."""
        kept, self.max_active = self.max_active, None
        try:
            return super().slot_scores(table)
        finally:
            self.max_active = kept

    def encode(self, texts: Sequence[str] | str, role: str = "passage", *, progress: bool = False) -> csr_array:
        """Returns a CSR matrix of weights [len(texts), V] in float32, in input order; [1, V] for one text.

        role: "query" or "passage", which chooses prompt, maximum length and the encoder. progress: shows
        a progress bar. Raises ValueError for another role and TypeError for values other than text.
        """
        if role not in ("query", "passage"):
            raise ValueError(f"role must be query or passage, got {role!r}")
        several = [texts] if isinstance(texts, str) else list(texts)
        for index, text in enumerate(several):
            if not isinstance(text, str):
                raise TypeError(f"texts[{index}] must be a string, got {type(text).__name__}")
        sequences = self.inputs.sequences_of(several, "query" if role == "query" else "candidate")
        with counting("encode", len(sequences), shown=progress) as advance:
            return to_csr(self.encode_vectors(sequences, advance), self.dim)

    def terms(self, text: str, role: str = "passage") -> dict[str, float]:
        """Returns the active tokens of a text and their weights, largest first."""
        row = self.encode(text, role)
        tokens = self.tokenizer.convert_ids_to_tokens(row.indices.tolist())
        found = sorted(zip(tokens, row.data.tolist(), strict=True), key=lambda item: -item[1])
        return dict(found)

    def _check_lengths(self) -> None:
        usable = usable_positions(self.base, self.position_offset)
        names = ["passage_max_length"] if self.inputs.static else ["query_max_length", "passage_max_length"]
        problems = [
            f"model.{name}={asked}, but the model has {usable} positions; lower it to {usable} or less"
            for name in names
            if usable is not None and (asked := getattr(self.settings, name)) > usable
        ]
        if problems:
            raise ConfigError(problems)
