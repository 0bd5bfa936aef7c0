"""Late-interaction models: encoders or decoders of transformers with one vector per token, compared by MaxSim."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from rankpo.errors import ConfigError
from rankpo.losses.maths import at_least_float32
from rankpo.models.engine.maxsim import maxsim, paired_maxsim
from rankpo.models.engine.positions import usable_positions
from rankpo.models.late_interaction.inputs import LateInteractionInputs
from rankpo.models.late_interaction.pooling import pool_vectors
from rankpo.models.late_interaction.settings import LateInteractionSettings
from rankpo.models.layers import make_layers
from rankpo.models.vectors import EncodesTexts
from rankpo.runs.logger import counting
from rankpo.types import Sequences, Vectors

ROLES = ("query", "passage")


class LateInteractionModel(EncodesTexts):
    """Projects and normalises hidden states. `forward(sequences)` returns [R, D] float32, one row per kept token."""

    kind: ClassVar[str] = "late_interaction"
    stored_form: ClassVar[str] = "tokens"
    pools: ClassVar[bool] = True
    inputs: LateInteractionInputs
    settings: LateInteractionSettings

    def __init__(
        self,
        backbone: PreTrainedModel,
        inputs: LateInteractionInputs,
        *,
        layout: str = "auto",
        chunk_tokens: int | None = None,
    ) -> None:
        """Raises ConfigError for lengths above the backbone's positions and for attention that cannot mask tokens."""
        super().__init__(backbone, inputs, layout=layout, chunk_tokens=chunk_tokens)
        width = int(self.base.config.get_text_config().hidden_size)
        layers, self._dim = self.settings.sized(width)
        self.layers = make_layers(layers)
        self._at_start = False
        self._of_start: tuple[nn.ModuleList, ...] = ()  # In a tuple, so that torch does not register it as a submodule.
        _check(self.settings, backbone, usable_positions(backbone, self.position_offset))

    @property
    def dim(self) -> int:
        return self._dim

    def counts(self, sequences: Sequences) -> Tensor:
        """[N] tokens with a vector."""
        if sequences.kept is None:
            return sequences.lengths
        ends = sequences.lengths.cumsum(0)
        running = torch.cat([torch.zeros(1, dtype=torch.int64), sequences.kept.to(torch.int64).cumsum(0)])
        return running[ends] - running[ends - sequences.lengths]

    def forward(self, sequences: Sequences) -> Tensor:
        places = Vectors(torch.empty(0), self.counts(sequences))
        starts = sequences.lengths.cumsum(0) - sequences.lengths
        parts, rows = [], []
        for chunk, hidden, lengths in self.hidden_states(sequences):
            if sequences.kept is not None:
                kept = [
                    sequences.kept[start : start + size] for start, size in zip(starts[chunk], lengths, strict=True)
                ]
                # A boolean index would wait for the device to count the kept tokens.
                hidden = hidden[torch.cat(kept).nonzero().squeeze(1).to(hidden.device, non_blocking=True)]
            rows.append(places.places(chunk))
            parts.append(self._finished(hidden))
        if not parts:
            return self._finished(torch.zeros(0, self.base.config.get_text_config().hidden_size, device=self.device))
        return torch.cat(parts)[torch.argsort(torch.cat(rows)).to(self.device, non_blocking=True)]

    def _finished(self, hidden: Tensor) -> Tensor:
        """[r, D] vectors of hidden states, in float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            vectors = hidden.float()
            for layer in self._of_start[0] if self._at_start else self.layers:
                vectors = layer(vectors)
            return normalize(vectors, dim=1) if self.settings.normalize else vectors

    def keep_start(self) -> None:
        """Keeps a copy of the projection for `adapters_off`, since it is trained beside the adapters."""
        self._of_start = (copy.deepcopy(self.layers).requires_grad_(False),)

    @contextmanager
    def adapters_off(self) -> Iterator[None]:
        """Disables the adapters inside the block and restores the projection from `keep_start`."""
        with super().adapters_off():
            self._at_start = bool(self._of_start)
            for layers in self._of_start:
                layers.to(self.device)
            try:
                yield
            finally:
                self._at_start = False

    def similarity(self, queries: Vectors, candidates: Vectors) -> Tensor:
        """[q, c] MaxSim, divided by the number of the query's vectors if normalize_scores is true."""
        return self._scaled(maxsim(_exact(queries), _exact(candidates)), queries, (-1, 1))

    def paired(self, queries: Vectors, candidates: Vectors) -> Tensor:
        return self._scaled(paired_maxsim(_exact(queries), _exact(candidates)), queries, (-1,))

    @torch.no_grad()
    def stored_similarity(self, queries: Vectors, candidates: Vectors) -> Tensor:
        """[q, c] MaxSim on the device of the model, returned on the CPU."""
        left, right = (Vectors(item.rows.to(self.device), item.counts) for item in (queries, candidates))
        return self.similarity(left, right).cpu()

    def pool_tokens(self, vectors: Vectors, factor: float) -> Vectors:
        """Fewer vectors for each text; see `pool_vectors`."""
        return pool_vectors(vectors, factor)

    def _scaled(self, scores: Tensor, queries: Vectors, shape: tuple[int, ...]) -> Tensor:
        if not self.settings.normalize_scores:
            return scores
        return scores / queries.counts.clamp(min=1).to(scores.device, scores.dtype, non_blocking=True).view(shape)

    # For users

    def encode_passage(self, texts: Sequence[str] | str, *, progress: bool = False) -> list[np.ndarray] | np.ndarray:
        """`encode` in the role passage."""
        return self.encode(texts, "passage", progress=progress)

    def encode(
        self, texts: Sequence[str] | str, role: str = "passage", *, progress: bool = False
    ) -> list[np.ndarray] | np.ndarray:
        """Token vectors [tokens, D] float32 of each text, in input order; one text gives one array.

        role: "query" or "passage", which chooses prompt, length, expansion and skipped tokens. progress: shows
        a progress bar. Raises ValueError for another role and TypeError for values other than text.
        """
        several = [texts] if isinstance(texts, str) else list(texts)
        vectors = self.encode_packed(several, role, progress=progress)
        arrays = np.split(vectors.rows.numpy(), vectors.counts.cumsum(0).numpy()[:-1]) if several else []
        return arrays[0] if isinstance(texts, str) else arrays

    def encode_packed(self, texts: Sequence[str], role: str = "passage", *, progress: bool = False) -> Vectors:
        """The vectors of all texts one after another, on the CPU; equal texts are encoded once. See `encode`."""
        if role not in ROLES:
            raise ValueError(f"role must be query or passage, got {role!r}")
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"texts[{index}] must be a string, got {type(text).__name__}")
        with counting("encode", len(set(texts)), shown=progress) as advance:
            return self.encode_stored(texts, role, advance)

    @torch.no_grad()
    def scores(self, queries: Sequence[str], documents: Sequence[str]) -> np.ndarray:
        """[queries, documents] float32 MaxSim scores of texts."""
        left, right = self.encode_packed(queries, "query"), self.encode_packed(documents, "passage")
        return self.stored_similarity(left, right).numpy()


def _exact(vectors: Vectors) -> Vectors:
    return Vectors(at_least_float32(vectors.rows), vectors.counts)


def _check(settings: LateInteractionSettings, backbone: PreTrainedModel, usable: int | None) -> None:
    """Raises ConfigError for lengths above the usable positions, and for flash attention with masked expansions."""
    problems = [
        f"model.{name}={asked}, but the model has {usable} positions; lower it to {usable} or less"
        for name in ("query_max_length", "passage_max_length")
        if usable is not None and (asked := getattr(settings, name)) > usable
    ]
    flash = str(backbone.config._attn_implementation).startswith("flash")
    if flash and settings.expanded_length and not settings.attend_to_expansion:
        problems.append(
            "model.attn_implementation=flash_attention_2 cannot mask the query expansion tokens; set "
            "model.attn_implementation=sdpa, or model.attend_to_expansion=true, which changes the scores"
        )
    if problems:
        raise ConfigError(problems)
