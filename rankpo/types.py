"""Types shared by all parts of rankpo, and the legend of shape letters.

Shape letters, with the same meaning in every file:
B queries · G candidates per query · N distinct sequences · S tokens in total · T tokens in the longest
D embedding size · V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, ClassVar, Self

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Turn = tuple[str, str]  # role and content
Prompt = str | tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Example:
    """One query with its candidates as unmodified text, the item that every dataset yields.

    query: text, or the turns of a conversation; each candidate is then its next assistant turn.
    relevance: one number per candidate: 1 and 0 of positives and negatives, else the label; a preference pair is
    (chosen, rejected) with relevance (1, 0).
    teacher: one teacher score per candidate, or None.
    confidence: confidence in a preference, in [0, 1], or None if the data has none.
    source: `file:line` (or `dataset[index]`) for messages.
    query_prompt: the record's prompt before its query, which replaces the model's prompt; None: the model's prompt.
    passage_prompt: alike, before each candidate.
    symmetric: candidates get the query's prompt too (similarity and clustering data of FlagEmbedding).
    own_negatives: the query uses only its own negatives. max_negatives: the maximum number of own negatives.
    relevant: whether each candidate is a positive, by lists or a threshold; see `data.relevance`.
    grades: the labels of a record that has both lists and scores, for losses on labels; None: `relevance` is the label.
    finished: per candidate, False for a completion truncated during generation; None: all are complete.
    """

    query: Prompt
    candidates: tuple[str, ...]
    relevance: tuple[float, ...]
    id: str
    teacher: tuple[float, ...] | None = None
    confidence: float | None = None
    source: str = ""
    query_prompt: str | None = None
    passage_prompt: str | None = None
    symmetric: bool = False
    own_negatives: bool = False
    max_negatives: int | None = None
    relevant: tuple[bool, ...] | None = None
    grades: tuple[float, ...] | None = None
    finished: tuple[bool, ...] | None = None


@dataclass(frozen=True)
class OnDevice:
    """Base of records of tensors that a model or a loss reads on its device. stays: fields that stay on the CPU."""

    stays: ClassVar[frozenset[str]] = frozenset()

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Returns the record with `change` applied to each tensor that does not stay on the CPU."""
        return self._each(change, lambda record: record.mapped(change))

    def to(self, device: torch.device | str) -> Self:
        """Returns the record with its tensors on the device. The copies do not wait for it."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True), lambda record: record.to(device))

    def _each(self, change: Callable[[Tensor], Tensor], within: Callable[[OnDevice], OnDevice]) -> Self:
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in self.stays}
        kept = {name: value for name, value in values.items() if not isinstance(value, tuple | None)}
        return replace(self, **{n: (within if isinstance(v, OnDevice) else change)(v) for n, v in kept.items()})


@dataclass(frozen=True)
class Collated(OnDevice):
    """collated: the record before `to` moved it; None: this is that record."""

    collated: Self | None = field(default=None, repr=False, compare=False, kw_only=True)

    stays: ClassVar[frozenset[str]] = frozenset({"collated"})

    @property
    def on_cpu(self) -> Self:
        """The record before `to` moved it, whose sizes and places can be read without a wait for a GPU."""
        return self if self.collated is None else self.collated

    def to(self, device: torch.device | str) -> Self:
        return self.on_cpu if str(device) == "cpu" else replace(super().to(device), collated=self.on_cpu)


@dataclass(frozen=True)
class Sequences(OnDevice):
    """N token sequences, concatenated without padding; only a model's forward may pad.

    input_ids: [S] int64. lengths: [N] int64, on the CPU (chunking reads them). labels: [S] int64, on the CPU (the
    selection of scored positions reads them): the token id at scored tokens, -100 elsewhere and at every first token;
    or None. token_types: [S] int64, 1 in the second text of a pair, or None if the model reads none. prefixes: [N, 2]
    int64 on the CPU, number and length of each sequence's prefix: sequences with equal prefix numbers begin with the
    same unlabelled tokens, which a model may compute once. None: unknown. kept: [S] bool, on the CPU, tokens that have
    a vector of their own in late interaction; None: all. attended: [N] int64, on the CPU: every token of a sequence
    attends to so many tokens at the sequence's beginning, and none to those behind; None: to all.
    """

    input_ids: Tensor
    lengths: Tensor
    labels: Tensor | None = None
    token_types: Tensor | None = None
    prefixes: Tensor | None = None
    kept: Tensor | None = None
    attended: Tensor | None = None

    stays: ClassVar[frozenset[str]] = frozenset({"lengths", "labels", "prefixes", "kept", "attended"})

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        return int(self.input_ids.shape[0])


@dataclass(frozen=True)
class Vectors:
    """The vectors of N sequences, one sequence after another.

    rows: [R, D]. counts: [N] int64 on the CPU, rows of each sequence: 1 for models with one vector a text.
    """

    rows: Tensor
    counts: Tensor

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def single(self) -> bool:
        """Whether every sequence has exactly one row, so that `rows` is [N, D]."""
        return bool((self.counts == 1).all())

    def places(self, chosen: Tensor) -> Tensor:
        """[r] int64 on the CPU: rows of the chosen sequences, in their order. chosen: [n] int64 on the CPU."""
        if self.single:
            return chosen
        counts = self.counts[chosen]
        starts = (self.counts.cumsum(0) - self.counts)[chosen]
        first = counts.cumsum(0) - counts  # [n] places in the result
        numbers = (starts - first).repeat_interleave(counts)
        return numbers + numbers.new_ones(len(numbers)).cumsum(0) - 1

    def select(self, chosen: Tensor) -> Vectors:
        """The vectors of the chosen sequences, in their order; gradients flow through. chosen: [n] int64 on the CPU."""
        places = self.places(chosen).to(self.rows.device, non_blocking=True)
        return Vectors(self.rows[places], self.counts[chosen])

    def between(self, first: int, last: int) -> Vectors:
        """The vectors of the sequences first to last - 1, which share memory with these."""
        start = int(self.counts[:first].sum())
        size = int(self.counts[first:last].sum())
        return Vectors(self.rows[start : start + size], self.counts[first:last])

    def cpu(self) -> Vectors:
        return Vectors(self.rows.cpu(), self.counts)


@dataclass(frozen=True)
class Labels(Collated):
    """Labels of B queries, which are known before the forward pass and determine the weights of a loss's terms.

    relevance: [B, G] float32. mask: [B, G] bool, False on the padding of short lists.
    confidence: [B] float32 in [0, 1], 1 if the data has none. teacher: [B, G] float32 or None.
    lengths: [B, G] int64, scored tokens of each candidate (0 on padding), if scores are sums of log-probabilities
    over tokens, as for causal language models; None if a score belongs to the candidate as a whole.
    grades: [B, G] float32, labels that differ from the relevance: scores beside lists of positives and negatives;
    None if the relevance is the label.
    """

    relevance: Tensor
    mask: Tensor
    confidence: Tensor
    teacher: Tensor | None = None
    lengths: Tensor | None = None
    grades: Tensor | None = None

    def __len__(self) -> int:
        return int(self.relevance.shape[0])


@dataclass(frozen=True)
class TeacherVectors(OnDevice):
    """Embeddings by another model in the query and the candidate role: [N, D'] float32 each, in the order of the
    batch's sequences, 0 for rows without the role."""

    queries: Tensor
    candidates: Tensor


@dataclass(frozen=True)
class Batch(Collated):
    """B queries with G candidates each, as row numbers of `sequences`, which holds each distinct text once.

    queries: [B] int64, or None for models that read query and candidate as one sequence.
    candidates: [B, G] int64; rows of masked candidates are 0 and never used.
    positives: [P, 2] int64 pairs (query, row): some example of the data marks the row's text as relevant to the
    query. None if the loss does not need them.
    judged, grades: [J, 2] int64 pairs (query, row) and [J] float32: the relevance of the row's text for the query in
    any example of the data. None if the loss does not need them.
    teacher: embeddings of the texts by another model. None if the loss does not need them.
    reference: [B, G] scores of the reference model, computed before the run, or None.
    ids: the B example ids, for messages. own_negatives: [B] bool, queries that use only their own negatives; None: no
    query does.
    """

    sequences: Sequences
    queries: Tensor | None
    candidates: Tensor
    labels: Labels
    ids: tuple[str, ...]
    positives: Tensor | None = None
    reference: Tensor | None = None
    own_negatives: Tensor | None = None
    judged: Tensor | None = None
    grades: Tensor | None = None
    teacher: TeacherVectors | None = None

    def __len__(self) -> int:
        return int(self.candidates.shape[0])


@dataclass(frozen=True)
class Term:
    """One summand of a loss with its own denominator: scale · Σ losses·weights / Σ weights.

    losses: [B] in nats, unreduced. weights: [B], detached, or None for 1 each.
    """

    losses: Tensor
    weights: Tensor | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class LossOutput:
    """Unreduced output of a loss; the training loop divides by the global sums of the weights.

    losses, weights: the main term. terms: further summands by name, each with its own denominator, logged as
    `loss/<name>`. metrics: detached, [B] or [] each.
    """

    losses: Tensor
    weights: Tensor | None = None
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    terms: Mapping[str, Term] = field(default_factory=dict)

    def logged(self, main_term: str, sums: Mapping[str, float]) -> dict[str, Tensor]:
        """Returns the metrics of a log line, with the loss of each term if several terms have weight.

        main_term: the name of the main term. sums: the denominators of the terms.
        """
        metrics = dict(self.metrics)
        if self.terms:
            metrics[f"loss/{main_term}"] = self.losses
        metrics.update({f"loss/{name}": term.losses for name, term in self.terms.items() if sums.get(name)})
        return metrics
