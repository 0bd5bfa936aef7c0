"""Hybrid models (BGE-M3): one encoder gives dense, sparse and ColBERT vectors, and the score is their weighted sum.

The first token gives the dense vector; every other token gives a vector and a weight (https://arxiv.org/abs/2402.03216
section 3.2). A text has one row per token: the vector [D], the token's weight and its id. The row of the first token
holds the dense vector and the weight 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor, nn
from torch.nn.functional import normalize, pad, relu
from transformers import PreTrainedModel

from rankpo.errors import ConfigError
from rankpo.losses.maths import at_least_float32
from rankpo.models.engine.maxsim import maxsim, paired_maxsim
from rankpo.models.engine.positions import usable_positions
from rankpo.models.hybrid.parts import paired_part_scores, part_of, part_scores, weighted
from rankpo.models.hybrid.settings import HybridSettings
from rankpo.models.inputs import TextInputs
from rankpo.models.vectors import EncodesTexts
from rankpo.types import Sequences, Vectors


class HybridModel(EncodesTexts):
    """`forward(sequences)` gives [R, D + 2] float32: one row per token, as the module docstring describes.

    sparse_linear, colbert_linear: linear layers on the hidden states. A token that occurs several times in a text
    counts once, with its largest weight; special tokens have weight 0.
    """

    kind: ClassVar[str] = "hybrid"
    stored_form: ClassVar[str] = "hybrid"
    inputs: TextInputs
    settings: HybridSettings

    def __init__(
        self, backbone: PreTrainedModel, inputs: TextInputs, *, layout: str = "auto", chunk_tokens: int | None = None
    ) -> None:
        """Raises ConfigError if a maximum length exceeds the number of positions of the backbone."""
        super().__init__(backbone, inputs, layout=layout, chunk_tokens=chunk_tokens)
        self.width = int(self.base.config.get_text_config().hidden_size)
        self.sparse_linear = nn.Linear(self.width, 1)
        self.colbert_linear = nn.Linear(self.width, self.settings.colbert_dim or self.width)
        self.entries = int(self.base.config.get_text_config().vocab_size)
        self.unweighted = torch.tensor(sorted(set(self.tokenizer.all_special_ids)), dtype=torch.int64)
        self._check_lengths()

    @property
    def vector_dim(self) -> int:
        """D, the columns of a row's vector. If dense and token vectors differ in size, zeros pad the shorter ones."""
        return max(self.width, self.colbert_linear.out_features)

    @property
    def dim(self) -> int:
        return self.vector_dim + 2

    def counts(self, sequences: Sequences) -> Tensor:
        return sequences.lengths

    def forward(self, sequences: Sequences) -> Tensor:
        places = Vectors(torch.empty(0), sequences.lengths)
        starts = sequences.lengths.cumsum(0) - sequences.lengths
        parts, rows = [], []
        for chunk, hidden, lengths in self.hidden_states(sequences):
            slices = zip(starts[chunk].tolist(), lengths.tolist(), strict=True)
            ids = torch.cat([sequences.input_ids[start : start + size] for start, size in slices])
            rows.append(places.places(chunk))
            parts.append(self._rows(hidden, ids.to(self.device, non_blocking=True), lengths))
        if not parts:
            return torch.zeros(0, self.dim, device=self.device)
        return torch.cat(parts)[torch.argsort(torch.cat(rows)).to(self.device, non_blocking=True)]

    def _rows(self, hidden: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        """Rows [tokens, D + 2] from hidden states [tokens, D]."""
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.float()
            weights = relu(self.sparse_linear(hidden)).squeeze(1)
            weights = weights.masked_fill(torch.isin(ids, self.unweighted.to(ids.device, non_blocking=True)), 0)
            tokens = _padded(normalize(self.colbert_linear(hidden), dim=1), self.vector_dim)
            first = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
            first[(lengths.cumsum(0) - lengths).to(ids.device, non_blocking=True)] = True
            dense = _padded(normalize(hidden, dim=1), self.vector_dim)
            vectors = torch.where(first[:, None], dense, tokens)
            return torch.cat([vectors, weights.masked_fill(first, 0)[:, None], ids.float()[:, None]], 1)

    def similarity(self, queries: Vectors, candidates: Vectors) -> Tensor:
        """[q, c] weighted sums of the scores of the parts."""
        return self._summed(self._parts(queries, candidates))

    def paired(self, queries: Vectors, candidates: Vectors) -> Tensor:
        if not (queries.rows.requires_grad or candidates.rows.requires_grad):
            return self.stored_paired(queries, candidates).to(queries.rows.device)  # Without tensors [n, vocabulary].
        left, right = _Split(queries, self.vector_dim), _Split(candidates, self.vector_dim)
        found = {
            "dense": lambda: (left.dense * right.dense).sum(1),
            "sparse": lambda: (left.entries(self.entries) * right.entries(self.entries)).sum(1),
            "colbert": lambda: (
                paired_maxsim(left.tokens, right.tokens)
                / left.tokens.counts.clamp(min=1).to(left.device, non_blocking=True)
            ),
        }
        return self._summed(torch.stack([found[name]() for name in self.settings.parts]))

    def part_similarities(self, queries: Vectors, candidates: Vectors) -> Tensor:
        parts = self._parts(queries, candidates)
        return torch.cat([self._summed(parts)[None], parts])

    def _parts(self, queries: Vectors, candidates: Vectors) -> Tensor:
        """Returns the unweighted scores [parts, q, c] in the order of settings.parts."""
        left, right = _Split(queries, self.vector_dim), _Split(candidates, self.vector_dim)
        found = {
            "dense": lambda: left.dense @ right.dense.T,
            "sparse": lambda: left.entries(self.entries) @ right.entries(self.entries).T,
            "colbert": lambda: (
                maxsim(left.tokens, right.tokens)
                / left.tokens.counts.clamp(min=1).to(left.device, non_blocking=True)[:, None]
            ),
        }
        return torch.stack([found[name]() for name in self.settings.parts])

    def _summed(self, scores: Tensor) -> Tensor:
        """Weighted sum [...] of scores [parts, ...] over the parts."""
        weights = torch.tensor(self.settings.weights, dtype=scores.dtype).to(scores.device, non_blocking=True)
        return torch.tensordot(weights, scores, dims=1)

    # Stored vectors are the rows of `forward`; task=encode writes their vectors, weights and ids into files of their own.

    def stored_part(self, vectors: Vectors, part: str) -> Vectors:
        return part_of(vectors.cpu(), part)

    @torch.no_grad()
    def stored_part_similarity(self, part: str, queries: Vectors, candidates: Vectors) -> Tensor:
        return part_scores(part, queries, candidates, self.entries, self.device)

    @torch.no_grad()
    def stored_similarity(self, queries: Vectors, candidates: Vectors) -> Tensor:
        """[q, c] weighted sums of the parts, with products of sparse matrices, on the CPU."""
        pairs = {part: (self.stored_part(queries, part), self.stored_part(candidates, part)) for part in self.parts}
        return weighted({part: self.stored_part_similarity(part, *pair) for part, pair in pairs.items()}, self.parts)

    @torch.no_grad()
    def stored_paired(self, queries: Vectors, candidates: Vectors) -> Tensor:
        scores = {}
        for part in self.parts:
            left, right = self.stored_part(queries, part), self.stored_part(candidates, part)
            scores[part] = paired_part_scores(part, left, right, self.entries, self.device)
        return weighted(scores, self.parts)

    @property
    def parts(self) -> dict[str, float]:
        """The parts of the score with their weights."""
        return dict(zip(self.settings.parts, self.settings.weights, strict=True))

    def encode(self, texts: Sequence[str] | str, role: str = "passage", *, progress: bool = False) -> np.ndarray:
        """Raises TypeError, since a text has three parts; see `encode_parts`."""
        raise TypeError("a hybrid model gives three parts for a text; call encode_parts, or export one part: task.part")

    def encode_parts(self, texts: Sequence[str], role: str = "passage") -> Encoded:
        """Encodes texts into all three parts. role: "query" or "passage". Raises ValueError for any other role."""
        if role not in ("query", "passage"):
            raise ValueError(f"role must be query or passage, got {role!r}")
        sequences = self.inputs.sequences_of(list(texts), "query" if role == "query" else "candidate")
        rows = _Split(Vectors(self.encode_sequences(sequences), sequences.lengths), self.vector_dim)
        size = self.colbert_linear.out_features
        tokens = rows.tokens.rows[:, :size].numpy()
        return Encoded(
            dense=rows.dense[:, : self.width].numpy(),
            sparse=csr_array(rows.entries(self.entries).numpy()),
            colbert=np.split(tokens, rows.tokens.counts.cumsum(0).numpy()[:-1]) if len(texts) else [],
        )

    def _check_lengths(self) -> None:
        usable = usable_positions(self.base, self.position_offset)
        problems = [
            f"model.{name}={asked}, but the model has {usable} positions; lower it to {usable} or less"
            for name in ("query_max_length", "passage_max_length")
            if usable is not None and (asked := getattr(self.settings, name)) > usable
        ]
        if problems:
            raise ConfigError(problems)


class Encoded:
    """The three parts of n encoded texts.

    dense: [n, hidden size] float32. sparse: [n, vocabulary size], as CSR. colbert: n arrays [tokens - 1, D'], where
    D' is colbert_dim or the hidden size. The first token has no ColBERT vector.
    """

    def __init__(self, *, dense: np.ndarray, sparse: csr_array, colbert: list[np.ndarray]) -> None:
        self.dense, self.sparse, self.colbert = dense, sparse, colbert


class _Split:
    """Splits output rows [R, D + 2] into the parts, in at least float32. The parts of an empty text are zeros."""

    def __init__(self, vectors: Vectors, dim: int) -> None:
        self.rows, self.counts, self.dim = at_least_float32(vectors.rows), vectors.counts, dim
        self.device = vectors.rows.device
        starts = self.counts.cumsum(0) - self.counts
        self.first = torch.zeros(len(self.rows), dtype=torch.bool)
        self.first[starts[self.counts > 0]] = True

    @property
    def dense(self) -> Tensor:
        """The dense vectors [N, D] of N texts."""
        whole = self._at(self.first)
        if len(whole) == len(self.counts):
            return whole
        full = self.rows.new_zeros(len(self.counts), self.dim)
        return full.index_copy(0, (self.counts > 0).nonzero().squeeze(1).to(self.device, non_blocking=True), whole)

    @property
    def tokens(self) -> Vectors:
        """The ColBERT vectors: those of all tokens except the first of each text."""
        return Vectors(self._at(~self.first), (self.counts - 1).clamp(min=0))

    def _at(self, chosen: Tensor) -> Tensor:
        """The vectors of the chosen rows. chosen: [R] bool on the CPU, since a mask on a GPU waits for the number of rows."""
        return self.rows[chosen.nonzero().squeeze(1).to(self.device, non_blocking=True), : self.dim]

    def entries(self, vocabulary: int) -> Tensor:
        """Returns sparse vectors as a dense tensor [N, V]: the largest weight of each token id in each text."""
        owner = torch.arange(len(self.counts)).repeat_interleave(self.counts).to(self.device, non_blocking=True)
        places = owner * vocabulary + self.rows[:, self.dim + 1].long()
        flat = self.rows.new_zeros(len(self.counts) * vocabulary)
        return flat.scatter_reduce(0, places, self.rows[:, self.dim], "amax").view(len(self.counts), vocabulary)


def _padded(vectors: Tensor, dim: int) -> Tensor:
    return vectors if vectors.shape[1] == dim else pad(vectors, (0, dim - vectors.shape[1]))
