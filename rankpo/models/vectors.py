"""GivesVectors: the interface of models with vectors for in-batch losses, retrieval and evaluation.

A text has one vector or several. `Vectors` concatenates those of many texts, and `counts` is the number of rows of each
text, so that bi-encoders (one row per text) and late interaction (one row per token) share the code for training,
encoding and gathering over ranks.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from rankpo.data.batch import select
from rankpo.data.loaders.planner import cut, deal
from rankpo.models.base import CPU_CHUNK_TOKENS, RankingModel
from rankpo.models.engine.cpu_products import fast_products
from rankpo.models.engine.threads import in_threads
from rankpo.models.inputs import TextInputs
from rankpo.models.ranked import Pair, Ranked, by_score, checked_pairs, pairs_of
from rankpo.runs import processes
from rankpo.types import Batch, Sequences, Vectors

if TYPE_CHECKING:
    from rankpo.data.table import ExampleTable

ROWS_PER_BLOCK = 32768  # Sequences per block, which bounds memory.
SLOTS_PER_BLOCK = 65536
ENCODE_TOKENS = 16384  # Tokens between two calls of on_progress.

OnProgress = Callable[[int], None]
Encoded = np.ndarray | list[np.ndarray]  # The second type is for several vectors per text.
Tensors = Tensor | list[Tensor]


class GivesVectors(RankingModel):
    """A `RankingModel` that returns vectors: embedding, late_interaction, sparse.

    A kind implements `dim`, `forward`, `similarity` and `paired`, and `counts` if a text has more than one vector.
    """

    inputs: TextInputs
    pools: ClassVar[bool] = False  # Whether the kind implements `pool_tokens`.

    @property
    @abstractmethod
    def dim(self) -> int:
        """D, the dimensions of a vector."""

    @abstractmethod
    def forward(self, sequences: Sequences) -> Tensor:
        """[R, D] float32: the rows of all sequences, one sequence after another."""

    def counts(self, sequences: Sequences) -> Tensor:
        """Returns [N] int64 on the CPU: the number of rows of each sequence, computed without a forward pass."""
        return torch.ones(len(sequences), dtype=torch.int64)

    @abstractmethod
    def similarity(self, queries: Vectors, candidates: Vectors) -> Tensor:
        """[q, c] scores of every query with every candidate, in float32, with gradient: inner product, MaxSim, …"""

    def part_similarities(self, queries: Vectors, candidates: Vectors) -> Tensor:
        """[1 + parts, q, c] scores: `similarity`, then the score of each part of that sum."""
        raise TypeError(f"{type(self).__name__} has a single score and no parts")

    @abstractmethod
    def paired(self, queries: Vectors, candidates: Vectors) -> Tensor:
        """[n] float32 scores of query i with candidate i, with gradient."""

    # The stored form of encoded texts; a kind overrides it if its vectors are too large for the dense form.

    stored_form: ClassVar[str] = "dense"  # One of `FORMS` in rankpo/retrieval/shards.py.

    @property
    def ragged(self) -> bool:
        """Whether a text has several stored rows that are not entries of one sparse vector."""
        return self.stored_form not in ("dense", "sparse")

    @property
    def typical_size(self) -> int:
        """The typical count of stored numbers per text, for estimates of memory."""
        return self.dim

    @property
    def metric(self) -> str:
        """ "cosine" if all vectors have length 1, so that inner products are cosines; "dot" for other inner products."""
        return "dot"

    @property
    def stored_dim(self) -> int:
        """Columns of the rows that `encode_vectors` returns."""
        return self.dim

    def encode_vectors(self, sequences: Sequences, on_progress: OnProgress | None = None) -> Vectors:
        """Returns the vectors of the sequences on the CPU in stored form; see `encode_sequences`."""
        return Vectors(self.encode_sequences(sequences, on_progress), self.counts(sequences))

    def encode_stored(self, texts: Sequence[str], role: str, on_progress: OnProgress | None = None) -> Vectors:
        """The vectors of texts on the CPU in stored form, in their order; equal texts are encoded once.

        role: "query" or "passage". on_progress: as of `encode_sequences`.
        """
        distinct = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        sequences = self.inputs.sequences_of(list(distinct), "query" if role == "query" else "candidate")
        vectors = self.encode_vectors(sequences, on_progress)
        if len(distinct) == len(texts):
            return vectors
        return vectors.select(torch.tensor([distinct[text] for text in texts], dtype=torch.int64))

    def pool_tokens(self, vectors: Vectors, factor: float) -> Vectors:
        """Reduces the token vectors of each text by about `factor`, for kinds that have token vectors."""
        raise TypeError(f"{type(self).__name__} has no token vectors")

    def stored_part(self, vectors: Vectors, part: str) -> Vectors:
        """One part of stored vectors, for kinds that give "parts"."""
        raise TypeError(f"{type(self).__name__} has a single score and no parts")

    def stored_part_similarity(self, part: str, queries: Vectors, candidates: Vectors) -> Tensor:
        """[q, c] float32 scores of one part of stored vectors, on the CPU, without gradient."""
        raise TypeError(f"{type(self).__name__} has a single score and no parts")

    def stored_similarity(self, queries: Vectors, candidates: Vectors) -> Tensor:
        """[q, c] float32 scores of every query with every candidate, both in stored form, without gradient."""
        return self.similarity(queries, candidates)

    def stored_paired(self, queries: Vectors, candidates: Vectors) -> Tensor:
        """[n] float32 scores of query i with candidate i, both in stored form, without gradient."""
        return self.paired(queries, candidates)

    def score(self, output: Tensor, batch: Batch) -> Tensor:
        """[B, G] float32 scores of each query's own candidates."""
        assert batch.queries is not None
        vectors = Vectors(output, self.counts(batch.sequences))
        width = batch.candidates.shape[1]
        known = batch.on_cpu
        assert known.queries is not None
        left = vectors.select(known.queries.repeat_interleave(width))
        return self.paired(left, vectors.select(known.candidates.flatten())).reshape(batch.candidates.shape)

    def predict(self, pairs: Pair | Sequence[Pair]) -> np.ndarray:
        """Returns scores [n] float32 of pairs (query, document), or a single number for one pair.

        Each distinct text is encoded once. Raises TypeError for values other than pairs of strings, and ValueError for
        an empty query.
        """
        chosen, single = checked_pairs(pairs)
        left, right = self._encoded([a for a, _ in chosen], "query"), self._encoded([b for _, b in chosen], "candidate")
        scores = np.zeros(len(chosen), dtype=np.float32)
        for start in range(0, len(scores), SLOTS_PER_BLOCK):
            block = slice(start, start + SLOTS_PER_BLOCK)
            scores[block] = self.paired(*(vectors.select(places[block]) for vectors, places in (left, right))).numpy()
        return scores[0] if single else scores

    def rank(
        self, query: str, documents: Sequence[str], top_k: int | None = None, *, return_documents: bool = False
    ) -> list[Ranked]:
        """Returns at most `top_k` records with corpus_id and score, best first, ties in the given order.

        return_documents: adds the text to each record.
        """
        scores = self.predict(pairs_of(query, documents)).tolist()
        return by_score(scores, documents, top_k, return_documents)

    def _encoded(self, texts: Sequence[str], role: str) -> tuple[Vectors, Tensor]:
        """Returns the vectors of the distinct texts, and the index of each text among them."""
        distinct = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        sequences = self.inputs.sequences_of(list(distinct), role)
        vectors = Vectors(self.encode_sequences(sequences), self.counts(sequences))
        return vectors, torch.tensor([distinct[text] for text in texts], dtype=torch.int64)

    def slot_scores(self, table: ExampleTable) -> np.ndarray:
        return slot_similarities(self, table)

    @torch.no_grad()  # Not inference mode, since FSDP2 would then gather untrainable weights.
    def encode_sequences(self, sequences: Sequences, on_progress: OnProgress | None = None) -> Tensor:
        """[R, D] rows on the CPU, computed in length-sorted chunks in evaluation mode.

        on_progress: called with the number of sequences done since its last call.
        """
        counts = self.counts(sequences)
        output = Vectors(torch.empty(int(counts.sum()), self.dim), counts)
        on_cpu = (
            self.device.type == "cpu"
        )  # A CPU's parts are one call of the backbone, so that threads can share them.
        parts = parts_of(sequences.lengths, self.chunk_tokens or CPU_CHUNK_TOKENS if on_cpu else ENCODE_TOKENS)

        def encoded(rows: np.ndarray) -> Tensor:
            return self(select(sequences, rows)).float().cpu()

        with self.evaluating(), fast_products(self, sequences.num_tokens):
            for rows, vectors in zip(parts, in_threads(encoded, parts, self.has_threads), strict=True):
                output.rows[output.places(torch.from_numpy(rows))] = vectors
                if on_progress is not None:
                    on_progress(len(rows))
        return output.rows


class EncodesTexts(GivesVectors):
    """A `GivesVectors` that returns the vectors of plain texts to callers, in the form of its kind."""

    @abstractmethod
    def encode(self, texts: Sequence[str] | str, role: str = "passage", *, progress: bool = False) -> Encoded:
        """Returns the vectors of texts in input order. role: "query" or "passage". progress: shows a progress bar."""

    def encode_query(
        self, texts: Sequence[str] | str, *, convert_to_tensor: bool = False, progress: bool = False
    ) -> Encoded | Tensors:
        """Calls `encode` with role="query". convert_to_tensor: returns tensors. progress: shows a progress bar."""
        return _converted(self.encode(texts, "query", progress=progress), convert_to_tensor)

    def encode_document(
        self, texts: Sequence[str] | str, *, convert_to_tensor: bool = False, progress: bool = False
    ) -> Encoded | Tensors:
        """Calls `encode` with role="passage". convert_to_tensor: returns tensors. progress: shows a progress bar."""
        return _converted(self.encode(texts, "passage", progress=progress), convert_to_tensor)


def _converted(vectors: Encoded, convert_to_tensor: bool) -> Encoded | Tensors:
    """Returns arrays unchanged, or tensors that share their memory."""
    if not convert_to_tensor:
        return vectors
    return [torch.from_numpy(item) for item in vectors] if isinstance(vectors, list) else torch.from_numpy(vectors)


def encode_table(model: GivesVectors, table: ExampleTable, rows: np.ndarray, role: str) -> Vectors:
    """Returns the vectors of rows of a table in stored form on the CPU of every rank; one rank encodes each row.

    role: "query" or "candidate".
    """
    inputs = model.inputs
    keys = [inputs.key(row, role) for row in rows.tolist()]
    own = deal(inputs.sizes(table, keys), processes.world_size())[processes.rank()]
    blocks: list[Vectors] = []
    shortest = [keys[int(table.lengths[rows].argmin())]] if keys else []
    with processes.in_step(model, lambda: inputs.sequences(table, shortest)):
        for start in range(0, len(own), ROWS_PER_BLOCK):
            sequences = inputs.sequences(table, [keys[index] for index in own[start : start + ROWS_PER_BLOCK]])
            blocks.append(model.encode_vectors(sequences))
    vectors = blocks[0] if len(blocks) == 1 else _joined(blocks, model.stored_dim)
    if processes.world_size() == 1:
        return vectors
    return placed(Vectors(vectors.rows.to(model.device), vectors.counts), torch.from_numpy(own), len(rows)).cpu()


def placed(local: Vectors, own: Tensor, count: int) -> Vectors:
    """Gathers the vectors of all `count` sequences on every rank, without gradient. local: those of `own`."""
    counts = processes.place_rows(local.counts.to(local.rows.device), own, count).cpu()
    rows = Vectors(local.rows, counts).places(own)
    return Vectors(processes.place_rows(local.rows, rows, int(counts.sum())), counts)


def slot_similarities(model: GivesVectors, table: ExampleTable) -> np.ndarray:
    """Returns scores [slots] float32 of the table's candidates for their queries; encodes each distinct text once."""
    query_rows, candidate_rows = np.unique(table.query), np.unique(table.candidates)
    queries = encode_table(model, table, query_rows, "query")
    candidates = encode_table(model, table, candidate_rows, "candidate")
    query_of_slot = np.repeat(np.asarray(table.query), np.diff(table.offsets))
    scores = np.empty(len(table.candidates), dtype=np.float32)
    for start in range(0, len(scores), SLOTS_PER_BLOCK):
        block = slice(start, start + SLOTS_PER_BLOCK)
        left = torch.from_numpy(np.searchsorted(query_rows, query_of_slot[block]))
        right = torch.from_numpy(np.searchsorted(candidate_rows, np.asarray(table.candidates[block])))
        scores[block] = model.stored_paired(queries.select(left), candidates.select(right)).numpy()
    return scores


def _joined(blocks: list[Vectors], dim: int) -> Vectors:
    if not blocks:
        return Vectors(torch.zeros(0, dim), torch.zeros(0, dtype=torch.int64))
    return Vectors(torch.cat([block.rows for block in blocks]), torch.cat([block.counts for block in blocks]))


def parts_of(lengths: Tensor, budget: int) -> list[np.ndarray]:
    """Sequence numbers by decreasing length, in parts of at most `budget` tokens, or one longer sequence."""
    return cut(np.arange(len(lengths)), lengths.numpy(), budget)


def by_tokens(order: Tensor, lengths: Tensor, budget: int) -> list[Tensor]:
    """Splits sequence numbers, in their order, into parts of about `budget` tokens. lengths: of all sequences."""
    cuts = (torch.cumsum(lengths[order], 0) - 1) // budget
    return list(order.split(torch.unique_consecutive(cuts, return_counts=True)[1].tolist())) if len(order) else []
