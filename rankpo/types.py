"""The types that every part of rankpo speaks.

Shape letters, the same in every file:
B queries · G candidates per query · N distinct sequences · S tokens in all · T tokens in the longest
D embedding size · V vocabulary
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


Turn = tuple[str, str]  # role and content
Prompt = str | tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Example:
    """One query with its candidates: what every dataset yields. Text only, never modified.

    query: text, or the turns of a conversation, whose next assistant turn each candidate is.
    relevance: one number per candidate: 1 and 0 of positives and negatives, else the label; a preference pair is
    (chosen, rejected) with relevance (1, 0).
    teacher: one teacher score per candidate, or None.
    confidence: of a preference, a fraction of 1, or None where nobody stated one.
    source: `file:line` (or `dataset[index]`) for messages.
    query_prompt: what the record has in front of its query, in place of the model's own prompt; None: the model's.
    symmetric: candidates get the query's prompt too (similarity and clustering data of FlagEmbedding).
    own_negatives: other queries' candidates are no negatives of this one. max_negatives: of its own, at most so many.
    relevant: whether each candidate is a positive, where lists or a threshold say so; see `data.relevance`.
    grades: the labels of a record that has both lists and scores, for losses on labels; None: `relevance` is the label.
    finished: per candidate, False for a completion that was cut when it was written; None: all are whole.
    """

    query: Prompt
    candidates: tuple[str, ...]
    relevance: tuple[float, ...]
    id: str
    teacher: tuple[float, ...] | None = None
    confidence: float | None = None
    source: str = ""
    query_prompt: str | None = None
    symmetric: bool = False
    own_negatives: bool = False
    max_negatives: int | None = None
    relevant: tuple[bool, ...] | None = None
    grades: tuple[float, ...] | None = None
    finished: tuple[bool, ...] | None = None


@dataclass(frozen=True)
class Sequences:
    """N token sequences, concatenated and never padded: padding happens, if at all, inside a model's forward.

    input_ids: [S] int64. lengths: [N] int64, on the CPU (they steer chunking). labels: [S] int64, on the CPU (they steer which
    positions are scored): the token itself where it is to be predicted from those before, -100 elsewhere and at every
    first token; or None. token_types: [S] int64, 1 in the second text of a pair, or None where the model
    reads none. prefixes: [N, 2] int64 on the CPU, number and length of what a sequence begins with: those of equal
    number begin with the same tokens, none of which is labelled; a model may compute them once. None: unknown.
    """

    input_ids: Tensor
    lengths: Tensor
    labels: Tensor | None = None
    token_types: Tensor | None = None
    prefixes: Tensor | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        return int(self.input_ids.shape[0])

    def to(self, device: torch.device | str) -> Sequences:
        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        ids = self.input_ids.to(device, non_blocking=True)
        return replace(self, input_ids=ids, token_types=move(self.token_types))


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
        """[r] int64 on the CPU: rows of the chosen sequences, in their order."""
        chosen = chosen.cpu()
        if self.single:
            return chosen
        counts = self.counts[chosen]
        starts = (self.counts.cumsum(0) - self.counts)[chosen]
        first = counts.cumsum(0) - counts  # [n] places in the result
        numbers = (starts - first).repeat_interleave(counts)
        return numbers + numbers.new_ones(len(numbers)).cumsum(0) - 1

    def select(self, chosen: Tensor) -> Vectors:
        """The vectors of the chosen sequences, in their order; gradients flow through. chosen: [n] int64."""
        if self.single:
            return Vectors(self.rows[chosen.to(self.rows.device)], self.counts[chosen.cpu()])
        return Vectors(self.rows[self.places(chosen).to(self.rows.device)], self.counts[chosen.cpu()])

    def cpu(self) -> Vectors:
        return Vectors(self.rows.cpu(), self.counts)


@dataclass(frozen=True)
class Labels:
    """What is known of B queries before any model runs: enough for a loss to weigh its terms.

    relevance: [B, G] float32. mask: [B, G] bool, False on the padding of short lists.
    confidence: [B] float32 in [0, 1], 1 where none was stated. teacher: [B, G] float32 or None.
    lengths: [B, G] int64, scored tokens of each candidate (0 on padding), where scores are sums of log-probabilities
    over tokens, as a causal language model's; None where a score is one number for the whole candidate.
    grades: [B, G] float32, labels that differ from the relevance: scores beside lists of positives and negatives; or
    None where the relevance is the label.
    """

    relevance: Tensor
    mask: Tensor
    confidence: Tensor
    teacher: Tensor | None = None
    lengths: Tensor | None = None
    grades: Tensor | None = None

    def __len__(self) -> int:
        return int(self.relevance.shape[0])

    def to(self, device: torch.device | str) -> Labels:
        values = ((item.name, getattr(self, item.name)) for item in fields(self))
        return replace(self, **{name: value.to(device) for name, value in values if value is not None})


@dataclass(frozen=True)
class TeacherVectors:
    """Embeddings by another model, read as a query and as a candidate: [N, D'] float32 each, in the rows of the batch's
    sequences, 0 where a row has not the role."""

    queries: Tensor
    candidates: Tensor

    def to(self, device: torch.device | str) -> TeacherVectors:
        return TeacherVectors(self.queries.to(device), self.candidates.to(device))


@dataclass(frozen=True)
class Batch:
    """B queries with G candidates each, as row numbers of `sequences`: an equal text is stored and encoded once.

    queries: [B] int64 or None (models that read query and candidate as one sequence have no query rows).
    candidates: [B, G] int64; rows of masked candidates are 0 and never used.
    positives: [P, 2] int64 pairs (query, row): the row's text is known, from anywhere in the data, to be
    relevant to that query. None where the loss does not ask for it.
    judged, grades: [J, 2] int64 pairs (query, row) and [J] float32: the relevance that any example of the data states
    for the row's text and that query. None where the loss does not ask for it.
    teacher: embeddings of the texts by another model. None where the loss does not ask for it.
    reference: [B, G] scores of the reference model, computed before the run, or None.
    ids: the B example ids, for messages. own_negatives: [B] bool, queries to which other queries' candidates are no
    negatives; None: no query is one of these.
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

    def to(self, device: torch.device | str) -> Batch:
        return replace(
            self,
            sequences=self.sequences.to(device),
            queries=None if self.queries is None else self.queries.to(device),
            candidates=self.candidates.to(device),
            labels=self.labels.to(device),
            positives=None if self.positives is None else self.positives.to(device),
            reference=None if self.reference is None else self.reference.to(device),
            own_negatives=None if self.own_negatives is None else self.own_negatives.to(device),
            judged=None if self.judged is None else self.judged.to(device),
            grades=None if self.grades is None else self.grades.to(device),
            teacher=None if self.teacher is None else self.teacher.to(device),
        )


@dataclass(frozen=True)
class Term:
    """One summand of a loss with a denominator of its own: scale · Σ losses·weights / Σ weights.

    losses: [B] in nats, not reduced. weights: [B], detached, or None for 1 each.
    """

    losses: Tensor
    weights: Tensor | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class LossOutput:
    """What a loss returns, not reduced; the training loop divides by the global sums of the weights.

    losses, weights: the main term. terms: further summands by name, each with its own denominator, logged as
    `loss/<name>`. metrics: detached, [B] or [] each.
    """

    losses: Tensor
    weights: Tensor | None = None
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    terms: Mapping[str, Term] = field(default_factory=dict)

    def logged(self, main_term: str, sums: Mapping[str, float]) -> dict[str, Tensor]:
        """The metrics of a log line: the losses of each term too, where there are several and they have weight.

        main_term: the name of the main one. sums: the denominators of the terms.
        """
        metrics = dict(self.metrics)
        if self.terms:
            metrics[f"loss/{main_term}"] = self.losses
        metrics.update({f"loss/{name}": term.losses for name, term in self.terms.items() if sums.get(name)})
        return metrics
