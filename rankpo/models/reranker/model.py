"""Pointwise rerankers: models with one score per sequence of query and candidate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from rankpo.data.batch import select
from rankpo.data.loaders.planner import cut, deal
from rankpo.data.text.conversations import plain_text
from rankpo.data.text.tokens import answer_ids
from rankpo.models.base import CPU_CHUNK_TOKENS, RankingModel
from rankpo.models.engine.positions import check_positions
from rankpo.models.engine.threads import in_threads
from rankpo.models.ranked import Pair, Ranked, by_score, checked_pairs, pairs_of
from rankpo.models.reranker.heads import ScoreHead, find_head
from rankpo.models.reranker.inputs import RerankerInputs
from rankpo.models.reranker.settings import RerankerSettings
from rankpo.runs import processes
from rankpo.types import Batch, Prompt, Sequences

if TYPE_CHECKING:
    from rankpo.data.readers.requests import Request
    from rankpo.data.table import ExampleTable

BATCH_TOKENS = 16384
PAIRS_PER_BLOCK = 8192  # Pairs per block, which bounds memory.


class RerankerModel(RankingModel):
    """`forward(sequences)` gives [N] float32 logits, one for each pair of query and candidate.

    backbone: with its head (sequence classification with one label, or a causal language model).
    """

    kind: ClassVar[str] = "reranker"
    computes_in_parts: ClassVar[bool] = True
    inputs: RerankerInputs
    settings: RerankerSettings

    def __init__(
        self,
        backbone: PreTrainedModel,
        inputs: RerankerInputs,
        *,
        layout: str = "auto",
        chunk_tokens: int | None = None,
    ) -> None:
        settings = inputs.settings
        answers = answers_of(inputs) if settings.head == "causal_lm" else ()
        head = find_head(backbone, settings.head, answers)
        super().__init__(backbone, inputs, layout=layout, chunk_tokens=chunk_tokens)
        self.head: ScoreHead = head
        self.answers = answers
        check_positions(settings.max_length, backbone, self.position_offset)
        self.read_one_token(head.pooling(backbone))

    def forward(self, sequences: Sequences) -> Tensor:
        """[N] float32 logits. With a gradient and more than `part_tokens` tokens, which only a long list of candidates
        has, the model computes parts in turn and recomputes them in the backward pass.
        """
        limit = self.part_tokens
        if limit is None or sequences.num_tokens <= limit or not torch.is_grad_enabled():
            return self._logits(sequences)
        order = torch.argsort(sequences.lengths, descending=True, stable=True)
        parts = cut(order.numpy(), sequences.lengths.numpy(), limit)
        scores = [checkpoint(self._logits, select(sequences, rows), use_reentrant=False) for rows in parts]
        place = torch.argsort(torch.from_numpy(np.concatenate(parts)))
        return torch.cat(scores)[place.to(self.device, non_blocking=True)]

    def _logits(self, sequences: Sequences) -> Tensor:
        rows, scores = [], []
        for chunk, hidden, lengths in self.hidden_states(sequences, self.head.pooling(self.base)):
            rows.append(chunk)
            # In half precision, close scores would be equal.
            with torch.autocast(hidden.device.type, enabled=False):
                scores.append(self.head.scores(self.base, hidden, lengths).float())
        if not rows:
            return torch.zeros(0, device=self.device)
        return torch.cat(scores)[torch.argsort(torch.cat(rows)).to(self.device, non_blocking=True)]  # [N]

    def score(self, scores: Tensor, batch: Batch) -> Tensor:
        """[B, G] scores of the candidates of each query. scores: [N]."""
        return scores[batch.candidates]

    def slot_scores(self, table: ExampleTable) -> np.ndarray:
        queries = np.repeat(np.asarray(table.query), np.diff(table.offsets))
        pairs, place = np.unique(np.stack([queries, np.asarray(table.candidates)], 1), axis=0, return_inverse=True)
        lengths = self.inputs.lengths(table.lengths[pairs[:, 0]], table.lengths[pairs[:, 1]])

        def score(rows: np.ndarray) -> Tensor:
            return self.score_sequences(self.inputs.sequences(table, pairs[rows].tolist()))

        return self.score_many(lengths, score)[place.reshape(-1)]

    def rerank(self, requests: Sequence[Request]) -> list[np.ndarray]:
        """[documents] float32 logits for each request, on every rank; each distinct pair is scored once, by one rank."""
        pairs = [(request.query, document) for request in requests for document in request.documents]
        distinct = {pair: number for number, pair in enumerate(dict.fromkeys(pairs))}
        texts = list(distinct)
        sizes = np.array([len(query) + len(document) for query, document in texts], dtype=np.int64)  # In characters.
        scores = self.score_many(sizes, lambda rows: self.score_texts([texts[row] for row in rows]))
        flat = scores[[distinct[pair] for pair in pairs]] if pairs else scores
        return np.split(flat, np.cumsum([len(request.documents) for request in requests])[:-1]) if requests else []

    def scores_of(self, query: Prompt, candidates: Sequence[str]) -> list[float]:
        """Returns scores as in `compute_score`; a conversation is converted to plain text."""
        return self._scores([(plain_text(query), text) for text in candidates], None, BATCH_TOKENS)

    def score_many(self, sizes: np.ndarray, score: Callable[[np.ndarray], Tensor]) -> np.ndarray:
        """[n] float32 scores of n pairs, on every rank. sizes: [n], to balance the ranks. score: scores pairs by index."""
        own = deal(sizes, processes.world_size())[processes.rank()]
        own = own[np.argsort(-sizes[own], kind="stable")]
        scores = torch.zeros(len(own))
        with processes.in_step(self, lambda: self.inputs.sequences_of([("a", "a")])):
            for start in range(0, len(own), PAIRS_PER_BLOCK):
                block = own[start : start + PAIRS_PER_BLOCK]
                scores[start : start + len(block)] = score(block)
        if processes.world_size() > 1:
            return processes.place_rows(scores.to(self.device), torch.from_numpy(own), len(sizes)).cpu().numpy()
        result = np.empty(len(sizes), dtype=np.float32)
        result[own] = scores.numpy()
        return result

    def score_texts(self, pairs: Sequence[Pair], batch_tokens: int = BATCH_TOKENS) -> Tensor:
        """[len(pairs)] float32 logits; the score of a sliced document is that of its best slice."""
        if self.settings.long_document == "truncate":
            return self.score_sequences(self.inputs.sequences_of(pairs), batch_tokens)
        sequences, owners = self.inputs.sliced(pairs)
        scores = self.score_sequences(sequences, batch_tokens)
        return torch.full((len(pairs),), -torch.inf).scatter_reduce(0, owners, scores, "amax")

    @torch.no_grad()  # Not inference mode, since FSDP2 would then gather untrainable weights.
    def score_sequences(self, sequences: Sequences, batch_tokens: int = BATCH_TOKENS) -> Tensor:
        """[N] float32 on the CPU, in evaluation mode, longest first, about `batch_tokens` tokens at a time."""
        scores = torch.zeros(len(sequences))
        tokens = min(batch_tokens, self.chunk_tokens or CPU_CHUNK_TOKENS) if self.has_threads else batch_tokens
        parts = cut(np.arange(len(sequences)), sequences.lengths.numpy(), tokens)
        with self.evaluating():
            found = in_threads(lambda rows: self._within_memory(sequences, rows), parts, self.has_threads)
            for rows, values in zip(parts, found, strict=True):
                scores[torch.from_numpy(rows)] = values
        return scores

    def _within_memory(self, sequences: Sequences, rows: np.ndarray) -> Tensor:
        """Scores rows of the sequences; halves the batch if the device runs out of memory."""
        try:
            return self(select(sequences, rows)).cpu()
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise
        torch.cuda.empty_cache()
        half = len(rows) // 2
        return torch.cat([self._within_memory(sequences, part) for part in (rows[:half], rows[half:])])

    def compute_score(
        self, pairs: Pair | Sequence[Pair], normalize: bool | None = None, batch_tokens: int = BATCH_TOKENS
    ) -> float | list[float]:
        """Returns scores in input order: a float for one pair of two texts, a list for a list of pairs.

        normalize: True applies a sigmoid, False gives logits, None uses the saved activation. Equal pairs are scored
        once. An empty document is allowed. Raises TypeError with the index for values other than pairs of strings, and
        ValueError for an empty query.
        """
        chosen, single = checked_pairs(pairs)
        scores = self._scores(chosen, normalize, batch_tokens)
        return scores[0] if single else scores

    def predict(self, pairs: Pair | Sequence[Pair], normalize: bool | None = None) -> np.ndarray:
        """`compute_score` as float32: an array [n] for a list of pairs, a number for one pair."""
        chosen, single = checked_pairs(pairs)
        scores = np.array(self._scores(chosen, normalize, BATCH_TOKENS), dtype=np.float32)
        return scores[0] if single else scores

    def _scores(self, pairs: Sequence[Pair], normalize: bool | None, batch_tokens: int) -> list[float]:
        distinct = {pair: number for number, pair in enumerate(dict.fromkeys(pairs))}
        scores = self.score_texts(list(distinct), batch_tokens) if pairs else torch.zeros(0)
        if normalize or (normalize is None and self.settings.activation == "sigmoid"):
            scores = torch.sigmoid(scores.double())
        values = scores.tolist()
        return [values[distinct[pair]] for pair in pairs]

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        normalize: bool | None = None,
        *,
        return_documents: bool = False,
    ) -> list[Ranked]:
        """Returns at most `top_k` records with corpus_id and score, best first, ties in the given order.

        normalize: as in `compute_score`. return_documents: adds the text to each record.
        """
        scores = self._scores(checked_pairs(pairs_of(query, documents))[0], normalize, BATCH_TOKENS)
        return by_score(scores, documents, top_k, return_documents)


def answers_of(inputs: RerankerInputs) -> tuple[int, ...]:
    """Returns the token ids of the answer words, after a check that each is one token at the end of the prompt."""
    settings = inputs.settings
    words = [settings.yes_word, *([settings.no_word] if settings.readout == "difference" else [])]
    return answer_ids(inputs.tokenizer, words, inputs.layout.tail)
