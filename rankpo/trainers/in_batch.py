"""Gradient cache for losses over the texts of a whole update: backward through the embeddings, then the model.

The method is that of Gao et al. 2021 (https://arxiv.org/abs/2101.06983). If an update exceeds `max_tokens`, the model
first computes all embeddings without a graph. The loss yields the gradient with respect to the embeddings. Then the
model encodes each part again and backpropagates the part's share of that gradient. The last part, which is the
largest, keeps its graph from the first pass, since memory must hold one graph anyway. With several ranks, sequences are distributed by tokens, every
rank gathers all embeddings and computes the loss of its own queries, and the ranks sum the gradients at the embeddings
before the backward passes. The parameters therefore receive the same gradient as with one process.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from rankpo.data.batch import select
from rankpo.data.judged import with_grades
from rankpo.data.loaders.planner import cut, deal, pad_equal
from rankpo.data.loaders.ranking import ContrastiveDataLoader, DataLoader, Group, ListwiseDataLoader
from rankpo.data.table import ExampleTable
from rankpo.losses.contrastive import ContrastiveLoss
from rankpo.losses.in_batch import InBatchLoss
from rankpo.losses.reduction import sums, total
from rankpo.losses.vectors import Similarity, inner_products
from rankpo.models.engine.kept_attention import KeptAttention
from rankpo.models.inputs import Inputs
from rankpo.runs import processes
from rankpo.trainers.regularisation import Regularisation
from rankpo.trainers.teacher import TeacherEmbeddings
from rankpo.trainers.update import Change
from rankpo.types import Batch, LossOutput, Sequences, Vectors

LONG = 512  # Mean tokens of a part's sequences from which on attention takes a large share of a forward pass.
KEPT = 4  # Attention outputs of so many times `max_tokens` are kept; they take 1/40 to 1/18 of a token's activations.
TOO_FEW_QUERIES = "trainer.batch_size is smaller than the number of processes; loss.cross_device=false needs more"


@dataclass(frozen=True)
class InBatchUpdate:
    """One update with this rank's share of the computation.

    batch: the queries of all ranks if they share one pool, else those of this rank. parts: rows of `batch.sequences` that this
    rank encodes, one array per micro-batch. texts: the sequences of each part; of an empty part, the shortest sequence.
    queries: [b] indices of the queries whose losses this rank computes.
    counts: [N] vectors of each sequence, None for 1 each. similarity: the model's score of queries and candidates.
    regularisation: of sparse vectors, or None. attention_tokens: at most the attention outputs of so many tokens are kept
    from the first forward pass for the second.
    """

    batch: Batch
    parts: list[np.ndarray]
    texts: list[Sequences]
    queries: Tensor
    denominators: dict[str, float]
    num_queries: int
    num_tokens: int
    ids: tuple[str, ...]
    shared: bool
    counts: Tensor | None = None
    similarity: Similarity = inner_products
    regularisation: Regularisation | None = None
    attention_tokens: int = 0

    def rows_of(self, part: np.ndarray) -> int:
        """Returns the number of vector rows of a part's sequences."""
        return len(part) if self.counts is None else int(self.counts[torch.from_numpy(part)].sum())

    def with_inputs(self, change: Change) -> InBatchUpdate:
        return replace(self, batch=change(self.batch), texts=[change(texts) for texts in self.texts])


def is_long(sequences: Sequences) -> bool:
    """Whether attention takes a large share of a forward pass over these sequences."""
    return sequences.num_tokens >= LONG * len(sequences)


def check_loader(loss: InBatchLoss, loader: DataLoader, key: str) -> None:
    """Raises ValueError if the loader's settings remove what the loss learns from. key: the loader's config key."""
    if isinstance(loss, ContrastiveLoss) and isinstance(loader, ListwiseDataLoader):
        raise ValueError(
            f"{key}=listwise yields graded lists, and ContrastiveLoss needs one positive followed by negatives; "
            f"set {key}=contrastive, or loss=graded_margin"
        )
    grades = np.unique(np.asarray(loader.table.relevance))
    if "grades" in loss.knows and isinstance(loader, ContrastiveDataLoader) and len(grades) > 2:
        shown = ", ".join(f"{grade:g}" for grade in grades[:5])
        raise ValueError(
            f"{type(loss).__name__} learns the order of the grades {shown}{' …' if len(grades) > 5 else ''}, and "
            f"{key}=contrastive yields one positive of any grade with negatives; set {key}=listwise"
        )


def prepare(
    loss: InBatchLoss,
    inputs: Inputs,
    table: ExampleTable,
    groups: list[Group],
    max_tokens: int,
    teacher: TeacherEmbeddings | None = None,
) -> InBatchUpdate:
    """Distributes one update's sequences and queries over ranks; all ranks compute the same plan.

    teacher: embeddings of the table's texts by another model, for losses that list `teacher` in `knows`.
    """
    ranks, rank = processes.world_size(), processes.rank()
    shared = loss.over_all_ranks or ranks == 1
    num_queries = len(groups)
    if not shared:
        groups = [groups[index] for index in deal(inputs.costs(table, groups), ranks)[rank]]
        if not groups:
            raise ValueError(TOO_FEW_QUERIES)
    batch = inputs.collate(table, groups, with_positives="positives" in loss.knows)
    if "grades" in loss.knows:
        batch = with_grades(batch, table, groups)
    if teacher is not None:
        batch = replace(batch, teacher=teacher.of_batch(batch, groups))
    lengths = batch.sequences.lengths.numpy()
    shares = deal(lengths, ranks) if shared else [np.arange(len(lengths))]
    cuts = pad_equal([cut(rows, lengths, max_tokens) for rows in shares])
    parts = largest_last(cuts[rank] if shared else cuts[0], lengths)
    queries = np.array_split(np.arange(len(groups)), ranks)[rank] if shared else np.arange(len(groups))
    return InBatchUpdate(
        batch=batch,
        parts=parts,
        texts=[select(batch.sequences, part if len(part) else _shortest(batch)) for part in parts],
        queries=torch.from_numpy(queries),
        denominators=sums(loss.in_batch_weights(batch)) if shared else {"loss": float(num_queries)},
        num_queries=num_queries,
        num_tokens=int(sum(lengths[part].sum() for part in parts)),
        ids=tuple(group.id for group in groups),
        shared=shared,
    )


def largest_last(parts: list[np.ndarray], lengths: np.ndarray) -> list[np.ndarray]:
    """Returns the parts with the one of most tokens at the end, where `backward` needs no second forward pass.

    lengths: tokens of each sequence. Among equal parts, the first one has the longest texts, whose attention costs most.
    """
    largest = max(range(len(parts)), key=lambda number: int(lengths[parts[number]].sum()))
    return [*parts[:largest], *parts[largest + 1 :], parts[largest]]


class Backward(Protocol):
    """The backward pass of a strategy, and the context in which ranks do not synchronise gradients."""

    def backward(self, value: Tensor) -> None: ...

    def no_sync(self) -> AbstractContextManager[None]: ...


def backward(
    loss: InBatchLoss,
    model: nn.Module,
    update: InBatchUpdate,
    strategy: Backward,
    *,
    scale: float = 1.0,
    last: bool = True,
) -> tuple[LossOutput, Tensor]:
    """Accumulates the gradient of scale · loss. Returns the loss output and this rank's share of the loss value.

    model: the wrapped policy. last: whether ranks synchronise gradients.
    """
    parts = _parts(update)
    kept = len(parts) - 1  # The last part keeps its graph, so it needs no second forward pass.
    embedded: list[Tensor] = []
    for number, part in enumerate(parts):
        quiet = strategy.no_sync() if kept or not last else nullcontext()
        with nullcontext() if number == kept else torch.no_grad(), quiet:
            embedded.append(part.first(model))
    end = _random_state()
    sizes = [update.rows_of(part) for part in update.parts]
    own = torch.cat([block[:size] for block, size in zip(embedded, sizes, strict=True)]).detach().float()
    rows = _rows(update).to(own.device, non_blocking=True)
    output, value, gradient = _loss_gradient(loss, update, own, rows)
    # The factor undoes DDP's mean over ranks.
    shares = (gradient[rows] * (scale * processes.world_size())).split(sizes)
    for number in (kept, *range(kept)):
        final = last and number == (kept - 1 if kept else kept)
        with nullcontext() if final else strategy.no_sync():
            block = embedded.pop() if number == kept else parts[number].again(model)
            # A part with weight 0 keeps the number of collectives equal on all ranks.
            share = shares[number] if len(shares[number]) else torch.zeros_like(block)
            strategy.backward((block.float() * share).sum())
        del block
    _restore(end)
    return output, value


@dataclass
class _Part:
    """The sequences of one micro-batch. attention: the attention outputs that the first pass keeps for the second, if
    any. state: the random state before the first pass, so that the second one has the same dropout masks."""

    sequences: Sequences
    attention: KeptAttention | None = None
    state: list[Tensor] = field(default_factory=list)

    def first(self, model: nn.Module) -> Tensor:
        """Encodes the part."""
        self.state = _random_state()
        with nullcontext() if self.attention is None else self.attention.written():
            embedded: Tensor = model(self.sequences)
        return embedded

    def again(self, model: nn.Module) -> Tensor:
        """Encodes the part again with a graph."""
        _restore(self.state)
        with nullcontext() if self.attention is None else self.attention.read():
            embedded: Tensor = model(self.sequences)
        return embedded


def _parts(update: InBatchUpdate) -> list[_Part]:
    """The parts that this rank encodes. The longest of those that are computed twice keep their attention outputs."""
    left = update.attention_tokens
    made: list[_Part] = []
    for number, sequences in enumerate(update.texts):
        keeps = number < len(update.texts) - 1 and is_long(sequences) and sequences.num_tokens <= left
        left -= sequences.num_tokens if keeps else 0
        made.append(_Part(sequences, KeptAttention() if keeps else None))
    return made


@torch.no_grad()
def loss_value(loss: InBatchLoss, model: nn.Module, update: InBatchUpdate) -> float:
    """Returns this rank's share of the loss value of an update, without any gradient."""
    embedded = [model(part.sequences) for part in _parts(update)]
    sizes = [update.rows_of(part) for part in update.parts]
    own = torch.cat([block[:size] for block, size in zip(embedded, sizes, strict=True)])
    _, shared = _output(loss, update, _of_all_ranks(update, own.float(), _rows(update)))
    return float(shared)


def _loss_gradient(
    loss: InBatchLoss, update: InBatchUpdate, own: Tensor, rows: Tensor
) -> tuple[LossOutput, Tensor, Tensor]:
    """Returns the loss output of this rank's queries, its value, and dL/dE summed over ranks, [N, D]."""
    full = _of_all_ranks(update, own, rows).requires_grad_()
    output, value = _output(loss, update, full)
    value.backward()  # type: ignore[no-untyped-call]
    gradient = torch.zeros_like(full) if full.grad is None else full.grad
    return output, value.detach().double(), processes.sum_over_ranks(gradient) if update.shared else gradient


def _counts(update: InBatchUpdate) -> Tensor:
    """Returns the vector rows of each sequence, [N] int64."""
    return torch.ones(len(update.batch.sequences), dtype=torch.int64) if update.counts is None else update.counts


def _of_all_ranks(update: InBatchUpdate, own: Tensor, rows: Tensor) -> Tensor:
    """Returns the vectors [R, D] of the whole update. own: those of `rows`, which this rank has computed."""
    count = int(_counts(update).sum())
    return processes.place_rows(own, rows, count) if update.shared else _place(own, rows, count)


def _output(loss: InBatchLoss, update: InBatchUpdate, full: Tensor) -> tuple[LossOutput, Tensor]:
    """Returns the loss output of this rank's queries and its value. full: vectors [R, D] of the whole update."""
    batch = update.batch.to(full.device)
    output = loss.in_batch(Vectors(full, _counts(update)), batch, update.queries, update.similarity)
    if update.regularisation is not None:
        output = update.regularisation.added(output, full, batch, update.queries)
    return output, total(output, update.denominators)


def _rows(update: InBatchUpdate) -> Tensor:
    """Returns the rows [r] of the update's vectors that this rank's parts compute, in their order."""
    sequences = torch.from_numpy(np.concatenate(update.parts))
    if update.counts is None:
        return sequences
    return Vectors(torch.empty(0), update.counts).places(sequences)


def _place(own: Tensor, rows: Tensor, count: int) -> Tensor:
    full = torch.zeros(count, own.shape[1], dtype=own.dtype, device=own.device)
    full[rows.to(own.device, non_blocking=True)] = own
    return full


def _shortest(batch: Batch) -> np.ndarray:
    return np.array([int(batch.sequences.lengths.argmin())])


def _random_state() -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def _restore(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state_all(states[1:])
