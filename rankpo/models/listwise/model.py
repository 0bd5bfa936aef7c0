"""Listwise rerankers: one prompt contains a query and several passages, each with an identifier.

The logit of an identifier after the prompt is the score of its passage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import xxhash
from torch import Tensor
from transformers import PreTrainedModel

from rankpo.models.causal_lm.language_model import LanguageModel, scored_counts, scored_labels, sum_by_sequence
from rankpo.models.engine.last_layer import OneToken
from rankpo.models.engine.positions import usable_positions
from rankpo.models.engine.token_logps import TokenRequest, token_values
from rankpo.models.listwise.inputs import ListwiseInputs
from rankpo.models.listwise.ranked import ListwiseOutput, RankedList
from rankpo.models.listwise.settings import DECODE, ListwiseSettings
from rankpo.models.ranked import OrdersLists, Ranked, record
from rankpo.types import Batch, Sequences

if TYPE_CHECKING:
    from rankpo.data.readers.requests import Request
    from rankpo.data.table import ExampleTable


class ListwiseModel(LanguageModel, OrdersLists):
    """`forward(sequences)` returns a `ListwiseOutput` with one row per prompt, for all losses on [B, G].

    inputs: converts the lists; its settings are saved with the weights. neftune_alpha: α of the uniform noise on input
    embeddings in training (https://arxiv.org/abs/2310.05914); 0 means none. noise_key: seeds the noise of a sequence
    together with its tokens, so that the noise does not depend on micro-batches.
    """

    kind: ClassVar[str] = "listwise"
    inputs: ListwiseInputs
    settings: ListwiseSettings
    decode_modes = DECODE
    wave_tokens = 32768  # Tokens of the windows of one batch.

    def __init__(
        self,
        backbone: PreTrainedModel,
        inputs: ListwiseInputs,
        *,
        layout: str = "auto",
        chunk_tokens: int | None = None,
        neftune_alpha: float = 0.0,
    ) -> None:
        super().__init__(backbone, inputs, layout=layout, chunk_tokens=chunk_tokens)
        self.neftune_alpha = neftune_alpha
        self.noise_key: tuple[int, ...] = ()
        self._noised: list[Tensor] = []
        if neftune_alpha:
            backbone.get_input_embeddings().register_forward_hook(self._add_noise)
        self._check_positions()

    def _check_positions(self) -> None:
        limit = usable_positions(self.base, self.position_offset)
        settings = self.settings
        if limit is not None and settings.max_length + settings.reasoning_tokens > limit:
            reasoning = f" with model.reasoning_tokens={settings.reasoning_tokens}" if settings.reasoning_tokens else ""
            raise ValueError(
                f"model.max_length={settings.max_length}{reasoning}, but the model has {limit} positions; "
                f"lower it to {limit - settings.reasoning_tokens} or less"
            )

    def forward(self, sequences: Sequences) -> ListwiseOutput:
        if sequences.labels is None:
            return ListwiseOutput(self.identifier_logits(self.last_hidden(sequences)), None)
        hidden = self.scored_hidden(sequences)  # [P, D]
        labels = scored_labels(sequences).to(self.device, non_blocking=True)
        logps = token_values(hidden, labels, self.head, TokenRequest()).logps
        counts = scored_counts(sequences)
        first = (torch.cumsum(counts, 0) - counts).to(self.device, non_blocking=True)
        return ListwiseOutput(self.identifier_logits(hidden[first]), sum_by_sequence(logps, sequences))

    def last_hidden(self, sequences: Sequences) -> Tensor:
        """Returns the hidden states [N, D] of the last token of each sequence."""
        rows, kept = [], []
        for chunk, hidden, lengths in self.hidden_states(sequences):
            rows.append(chunk)
            kept.append(hidden[(torch.cumsum(lengths, 0) - 1).to(hidden.device, non_blocking=True)])
        if not kept:
            return self.head.weight.new_zeros(0, self.head.weight.shape[1])
        return torch.cat(kept)[torch.argsort(torch.cat(rows)).to(self.device, non_blocking=True)]

    def identifier_logits(self, hidden: Tensor) -> Tensor:
        """[n, window] logits of the identifiers in float32, since half precision makes 1 % of pairs equal."""
        head = self.head
        ids = torch.tensor(self.inputs.layout.identifiers.first).to(hidden.device, non_blocking=True)
        with torch.autocast(hidden.device.type, enabled=False):
            logits = hidden.float() @ head.weight[ids].float().T
            if head.bias is not None:
                logits = logits + head.bias[ids].float()
            return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)

    def score(self, output: Any, batch: Batch) -> Tensor:
        """Returns the identifier logits [B, G], one for each passage in the order of the prompt; 0 where masked."""
        width = batch.labels.mask.shape[1]
        return output.logits[:, :width].masked_fill(~batch.labels.mask, 0.0)

    # NEFTune

    def _run_packed(
        self,
        pieces: list[Tensor],
        lengths: Tensor,
        attended: Tensor | None,
        token: OneToken | None = None,
        **further: list[Tensor],
    ) -> Tensor:
        self._noised = pieces
        return super()._run_packed(pieces, lengths, attended, token, **further)

    def _run_padded(
        self,
        pieces: list[Tensor],
        lengths: Tensor,
        attended: Tensor | None,
        token: OneToken | None = None,
        **further: list[Tensor],
    ) -> Tensor:
        self._noised = pieces
        return super()._run_padded(pieces, lengths, attended, token, **further)

    def _add_noise(self, module: object, arguments: object, embedded: Tensor) -> Tensor:
        """U(-m, m) on the tokens of each sequence, m = α/√(T·d) with its own T; none on padding."""
        if not (self.training and torch.is_grad_enabled()):
            return embedded
        noise = [self._noise(ids, embedded) for ids in self._noised]
        if self.packed:
            return embedded + torch.cat(noise)[None]
        return embedded + torch.nn.utils.rnn.pad_sequence(noise, batch_first=True)

    def _noise(self, ids: Tensor, embedded: Tensor) -> Tensor:
        size = (len(ids), embedded.shape[-1])
        text = (
            ids.cpu().numpy().tobytes() + np.array(self.noise_key or (torch.initial_seed(),), dtype=np.uint64).tobytes()
        )
        generator = torch.Generator(embedded.device).manual_seed(xxhash.xxh3_64_intdigest(text) >> 1)
        uniform = torch.rand(size, generator=generator, device=embedded.device, dtype=torch.float32)
        magnitude = self.neftune_alpha / (size[0] * size[1]) ** 0.5
        return ((2 * uniform - 1) * magnitude).to(embedded.dtype)

    # inference

    def write(self, prompts: Sequence[np.ndarray], budget: int) -> list[list[int]]:
        """Generates greedily at most `budget` tokens for each prompt. The result excludes the end token."""
        from rankpo.models.listwise.decoding import write

        return write(self, prompts, budget)

    def rank(
        self, query: str, documents: Sequence[str], top_k: int | None = None, *, return_documents: bool = False
    ) -> list[Ranked]:
        """Returns at most `top_k` records with corpus_id and score, best first.

        return_documents: adds the text to each record. See `ListwiseReranker.rank_many`.
        """
        from rankpo.models.listwise.reranking import ListwiseReranker

        ranked = ListwiseReranker(self).rank(query, documents, top_k)
        return [record(index, score, documents, return_documents) for index, score, _ in ranked]

    def order_of(self, query: str, candidates: Sequence[str]) -> list[int]:
        return [record["corpus_id"] for record in self.rank(query, candidates)]

    def rerank(self, requests: Sequence[Request]) -> list[np.ndarray]:
        """[documents] float32 scores for each request, on every rank; one rank processes each request."""
        return [ranked.by_document() for ranked in self.rank_requests(requests)]

    def rank_requests(self, requests: Sequence[Request], on_window_error: str = "raise") -> list[RankedList]:
        """Like `rerank`, with a record of each window. on_window_error: see `ListwiseReranker`."""
        from rankpo.models.listwise.reranking import ListwiseReranker

        return ListwiseReranker(self, on_window_error=on_window_error).rank_requests(requests)

    def rank_many(self, requests: Sequence[tuple[str, Sequence[str]]]) -> list[RankedList]:
        """Returns rankings of many (query, documents); a batch contains windows of different queries."""
        from rankpo.models.listwise.reranking import ListwiseReranker

        return ListwiseReranker(self).rank_many(requests)

    def slot_scores(self, table: ExampleTable) -> np.ndarray:
        """Returns float32 scores [slots] of all lists of the table, on every rank.

        Sliding windows score the lists, as in inference.
        """
        from rankpo.models.listwise.reranking import slot_scores

        return slot_scores(self, table)
