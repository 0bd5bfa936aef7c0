"""From groups of row numbers to a `Batch` of token sequences, for models that encode each text on its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import xxhash

from rankpo.data.loaders.ranking import Group
from rankpo.data.table import ExampleTable, Pieces
from rankpo.data.text.special_tokens import SpecialTokens
from rankpo.models.embedding.settings import EmbeddingSettings
from rankpo.types import Batch, Labels, Sequences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class EmbeddingInputs:
    """How an embedding model reads texts: prompt in front, special tokens around, cut at the role's length.

    The prompt is tokenised together with the text, as sentence-transformers and the servers do, so that a text has
    the same tokens in training, in evaluation and once deployed.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: EmbeddingSettings) -> None:
        self.tokenizer = tokenizer
        self.settings = settings
        self.special = SpecialTokens.learn(tokenizer)

    def pieces(self) -> Pieces:
        state = self.tokenizer.backend_tokenizer.to_str() if self.tokenizer.is_fast else repr(self.tokenizer)
        prompts = [self.settings.query_prompt, self.settings.passage_prompt]
        return Pieces(
            tokenize=self.tokenize,
            query_prefix=prompts[0],
            candidate_prefix=prompts[1],
            fingerprint=xxhash.xxh3_128_hexdigest(json.dumps([state, prompts]).encode()),
            own_prompts=True,
        )

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self.tokenizer(
            list(texts), add_special_tokens=False, truncation=False, return_attention_mask=False, verbose=False
        )
        return encoded["input_ids"]

    def max_length(self, role: str) -> int:
        return self.settings.query_max_length if role == "query" else self.settings.passage_max_length

    def kept(self, lengths: np.ndarray, role: str) -> np.ndarray:
        """Tokens of sequences whose texts have `lengths` tokens, special tokens included, after the cut."""
        return np.minimum(lengths + len(self.special), self.max_length(role))

    def assemble(self, tokens: np.ndarray, role: str) -> np.ndarray:
        room = self.max_length(role) - len(self.special)
        return np.concatenate([self.special.head, tokens[:room], self.special.tail]).astype(np.int64)

    def sequences(self, texts: Sequence[str], role: str) -> Sequences:
        """Token sequences of plain texts, in their order, without looking for duplicates."""
        prefix = self.settings.query_prompt if role == "query" else self.settings.passage_prompt
        encoded = self.tokenize([prefix + text for text in texts])
        return join([self.assemble(np.asarray(ids, dtype=np.int64), role) for ids in encoded])

    def rows(self, table: ExampleTable, rows: Sequence[int], role: str) -> Sequences:
        return join([self.assemble(table.tokens(row), role) for row in rows])

    def costs(self, table: ExampleTable, groups: Sequence[Group]) -> np.ndarray:
        """Tokens that each group brings, [len(groups)] int64; what groups share is not taken off."""
        return np.array(
            [
                int(self.kept(table.lengths[group.query], "query"))
                + int(self.kept(table.lengths[np.unique(group.candidates)], "candidate").sum())
                for group in groups
            ],
            dtype=np.int64,
        )

    def collate(
        self,
        table: ExampleTable,
        groups: Sequence[Group],
        with_positives: bool = False,
        reference: np.ndarray | None = None,
    ) -> Batch:
        """A batch in which every distinct sequence stands once.

        A text that is both query and candidate is one sequence if both roles give it the same tokens: the rows are
        equal only if the prompts are, and the lengths are compared here. reference: [slots] stored scores.
        """
        same_length = self.settings.query_max_length == self.settings.passage_max_length
        index: dict[tuple[int, str], int] = {}

        def number(row: int, role: str) -> int:
            return index.setdefault((row, "" if same_length else role), len(index))

        queries = [number(group.query, "query") for group in groups]
        width = max((len(group.candidates) for group in groups), default=1)
        candidates = np.zeros((len(groups), width), dtype=np.int64)
        for b, group in enumerate(groups):
            candidates[b, : len(group.candidates)] = [number(int(row), "candidate") for row in group.candidates]
        parts = [self.assemble(table.tokens(row), role or "candidate") for row, role in index]
        return Batch(
            sequences=join(parts),
            queries=torch.tensor(queries, dtype=torch.int64),
            candidates=torch.from_numpy(candidates),
            labels=labels_of(groups, width),
            ids=tuple(group.id for group in groups),
            positives=self._positives(table, groups, index, same_length) if with_positives else None,
            own_negatives=own_negatives(groups),
            reference=None if reference is None else stored_reference(groups, width, reference),
        )

    def _positives(
        self, table: ExampleTable, groups: Sequence[Group], index: dict[tuple[int, str], int], same_length: bool
    ) -> torch.Tensor:
        role = "" if same_length else "candidate"
        pairs = [
            (b, index[int(row), role])
            for b, group in enumerate(groups)
            for row in table.known_positives(group.query)
            if (int(row), role) in index
        ]
        return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)


def own_negatives(groups: Sequence[Group]) -> torch.Tensor | None:
    """[B] bool: queries to which other queries' candidates are no negatives; None where there are none such."""
    flags = [group.own_negatives for group in groups]
    return torch.tensor(flags) if any(flags) else None


def labels_of(groups: Sequence[Group], width: int | None = None) -> Labels:
    """The labels of groups, padded to the longest (or `width`) with mask False."""
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
    """[B, width] stored scores of the groups' candidates, 0 on padding. scores: [slots]."""
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
    starts = torch.cumsum(sequences.lengths, 0) - sequences.lengths
    places = [slice(int(starts[row]), int(starts[row] + sequences.lengths[row])) for row in rows.tolist()]

    def taken(tokens: torch.Tensor | None) -> torch.Tensor | None:
        if tokens is None:
            return None
        return torch.cat([tokens[place] for place in places]) if places else tokens[:0]

    ids = taken(sequences.input_ids)
    assert ids is not None
    lengths = sequences.lengths[torch.from_numpy(rows)]
    return Sequences(ids, lengths, taken(sequences.labels), taken(sequences.token_types))
