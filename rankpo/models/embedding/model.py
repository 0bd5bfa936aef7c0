"""Bi-encoders: any encoder or decoder of transformers as one vector per text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rankpo.data.batch import EmbeddingInputs, select
from rankpo.errors import ConfigError
from rankpo.models.base import RankingModel
from rankpo.models.embedding.settings import EmbeddingSettings
from rankpo.types import Batch, Sequences

if TYPE_CHECKING:
    from rankpo.data.table import ExampleTable

ENCODE_TOKENS = 16384  # tokens between two checks of the progress callback


class EmbeddingModel(RankingModel):
    """Hidden states, pooled and normalised: `forward(sequences)` gives [N, D] float32 embeddings.

    settings: pooling, normalisation, prompts and lengths; saved with the weights and used alike by training,
    mining, evaluation and export.
    """

    kind = "embedding"

    def __init__(
        self,
        backbone: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: EmbeddingSettings,
        *,
        layout: str = "auto",
        chunk_tokens: int | None = None,
    ) -> None:
        super().__init__(backbone, layout=layout, chunk_tokens=chunk_tokens)
        self.tokenizer = tokenizer
        self.settings = _within_positions(settings, backbone, self.position_offset)
        self.inputs = EmbeddingInputs(tokenizer, self.settings)

    @property
    def dim(self) -> int:
        return self.settings.truncate_dim or int(self.base.config.get_text_config().hidden_size)

    def forward(self, sequences: Sequences) -> Tensor:
        rows, pooled = [], []
        for chunk, hidden, lengths in self.hidden_states(sequences):
            rows.append(chunk)
            pooled.append(pool(hidden, lengths, self.settings.pooling))
        if not rows:
            return torch.zeros(0, self.dim, device=self.device)
        embeddings = torch.cat(pooled)[torch.argsort(torch.cat(rows)).to(self.device)]  # [N, D]
        if self.settings.truncate_dim is not None:
            embeddings = embeddings[:, : self.settings.truncate_dim]
        return normalize(embeddings, dim=1) if self.settings.normalize else embeddings

    def score(self, embeddings: Tensor, batch: Batch) -> Tensor:
        """[B, G] inner products of queries and their candidates (cosines if the model normalises)."""
        return pair_scores(embeddings, batch)

    def slot_scores(self, table: ExampleTable) -> np.ndarray:
        from rankpo.evaluation.base import inner_products

        return inner_products(self, table)

    def export(self, folder: Path, description: Mapping[str, Any]) -> float:
        """Writes the folder whole and loads it again; returns the largest difference of an embedding."""
        from rankpo.models.embedding.saving import export_embedding

        return export_embedding(folder, self, description)

    @torch.no_grad()  # not inference mode: weights that FSDP2 gathers in it could not be trained afterwards
    def encode_sequences(self, sequences: Sequences, on_progress: Any = None) -> Tensor:
        """[N, D] embeddings on the CPU, computed in length-sorted chunks in evaluation mode.

        on_progress: called with the number of sequences done since its last call.
        """
        training = self.training
        self.eval()
        try:
            output = torch.empty(len(sequences), self.dim)
            order = torch.argsort(sequences.lengths, descending=True, stable=True)
            for rows in _by_tokens(order, sequences.lengths, ENCODE_TOKENS):
                output[rows] = self(select(sequences, rows.numpy())).float().cpu()
                if on_progress is not None:
                    on_progress(len(rows))
            return output
        finally:
            self.train(training)

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
        from rankpo.runs.logger import counting

        several = [texts] if isinstance(texts, str) else list(texts)
        for index, text in enumerate(several):
            if not isinstance(text, str):
                raise TypeError(f"texts[{index}] must be a string, got {type(text).__name__}")
        if not several:
            return np.zeros((0, self.dim), dtype=np.float32)
        distinct = {text: number for number, text in enumerate(dict.fromkeys(several))}
        sequences = self.inputs.sequences(list(distinct), "query" if role == "query" else "candidate")
        if devices is not None and not len(devices):
            raise ValueError("devices must name at least one device, such as cpu, or be None")
        if devices is not None:
            from rankpo.models.embedding.parallel import encode_in_processes

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


def pool(hidden: Tensor, lengths: Tensor, pooling: str) -> Tensor:
    """One vector per sequence, [n, D] float32. hidden: [tokens, D], sequences concatenated; lengths: [n].

    The places come from the lengths, never from looking for a pad id: pad may equal eos, or occur in the text.
    """
    ends = torch.cumsum(lengths, 0).to(hidden.device)
    if pooling == "cls":
        return hidden[ends - lengths.to(hidden.device)].float()
    if pooling == "last":
        return hidden[ends - 1].float()
    sums = torch.stack([part.sum(0) for part in hidden.float().split(lengths.tolist())])  # [n, D]
    return sums / lengths.to(hidden.device)[:, None]


def _by_tokens(order: Tensor, lengths: Tensor, budget: int) -> list[Tensor]:
    cuts = (torch.cumsum(lengths[order], 0) - 1) // budget
    return list(order.split(torch.unique_consecutive(cuts, return_counts=True)[1].tolist())) if len(order) else []


def _within_positions(settings: EmbeddingSettings, backbone: PreTrainedModel, offset: int) -> EmbeddingSettings:
    """The settings; raises ConfigError for a length above the model's usable positions (XLM-R: 514 rows give 512)
    and for more dimensions than it has.
    """
    config = backbone.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    usable = None if limit is None else int(limit) - offset
    problems = [
        f"model.{name}={asked}, but the model has {usable} positions; lower it to {usable} or less"
        for name in ("query_max_length", "passage_max_length")
        if usable is not None and (asked := getattr(settings, name)) > usable
    ]
    if settings.truncate_dim is not None and settings.truncate_dim > config.hidden_size:
        problems.append(
            f"model.truncate_dim={settings.truncate_dim}, but the model has {config.hidden_size} dimensions"
        )
    if problems:
        raise ConfigError(problems)
    return settings
