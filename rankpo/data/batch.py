"""Collation of groups of row numbers to a `Batch`, for models that encode each text separately."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from rankpo.data.loaders.ranking import Group
from rankpo.types import Labels, Sequences


def own_negatives(groups: Sequence[Group]) -> torch.Tensor | None:
    """[B] bool, true for queries that do not use other queries' candidates as negatives; None if all of them do."""
    flags = [group.own_negatives for group in groups]
    return torch.tensor(flags) if any(flags) else None


def labels_of(groups: Sequence[Group], width: int | None = None) -> Labels:
    """The labels of groups, padded to the longest group (or to `width`) with mask False."""
    width = width or max((len(group.candidates) for group in groups), default=1)
    relevance = np.zeros((len(groups), width), dtype=np.float32)
    mask = np.zeros((len(groups), width), dtype=bool)
    teacher = np.zeros((len(groups), width), dtype=np.float32)
    grades = np.zeros((len(groups), width), dtype=np.float32)
    for b, group in enumerate(groups):
        size = len(group.candidates)
        relevance[b, :size], mask[b, :size] = group.relevance, True
        if group.teacher is not None:
            teacher[b, :size] = group.teacher
        grades[b, :size] = group.relevance if group.grades is None else group.grades
    has_teacher = bool(groups) and all(group.teacher is not None for group in groups)
    return Labels(
        relevance=torch.from_numpy(relevance),
        mask=torch.from_numpy(mask),
        confidence=torch.tensor([group.confidence for group in groups], dtype=torch.float32),
        teacher=torch.from_numpy(teacher) if has_teacher else None,
        grades=torch.from_numpy(grades) if any(group.grades is not None for group in groups) else None,
    )


def stored_reference(groups: Sequence[Group], width: int, scores: np.ndarray) -> torch.Tensor:
    """Stored scores of the groups' candidates, [B, width] with 0 on padding. scores: [slots]."""
    reference = np.zeros((len(groups), width), dtype=np.float32)
    for b, group in enumerate(groups):
        reference[b, : len(group.slots)] = scores[group.slots]
    return torch.from_numpy(reference)


def join(parts: Sequence[np.ndarray]) -> Sequences:
    """Sequences from a list of id arrays."""
    ids = np.concatenate(parts) if len(parts) else np.zeros(0, dtype=np.int64)
    return Sequences(
        input_ids=torch.from_numpy(ids.astype(np.int64, copy=False)),
        lengths=torch.tensor([len(part) for part in parts], dtype=torch.int64),
    )


def select(sequences: Sequences, rows: np.ndarray) -> Sequences:
    """The sequences of the given rows, in that order."""
    sizes = sequences.lengths.numpy()
    firsts, counts = (np.cumsum(sizes) - sizes)[rows], sizes[rows]
    offsets = np.cumsum(counts) - counts
    places = torch.from_numpy(np.arange(counts.sum()) + np.repeat(firsts - offsets, counts))  # of all tokens

    def taken(tokens: torch.Tensor | None) -> torch.Tensor | None:
        return None if tokens is None else tokens[places.to(tokens.device, non_blocking=True)]

    ids = taken(sequences.input_ids)
    assert ids is not None
    lengths = sequences.lengths[torch.from_numpy(rows)]
    chosen = torch.from_numpy(rows)
    return Sequences(
        ids,
        lengths,
        taken(sequences.labels),
        taken(sequences.token_types),
        prefixes=None if sequences.prefixes is None else sequences.prefixes[chosen],
        kept=taken(sequences.kept),
        attended=None if sequences.attended is None else sequences.attended[chosen],
    )
