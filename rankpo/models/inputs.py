"""Inputs: conversion of a table's texts to a model's token sequences, and of sequences to a batch."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar, cast

import numpy as np
import torch
import xxhash

from rankpo.data.batch import join, labels_of, own_negatives, stored_reference
from rankpo.data.dataset import Pieces
from rankpo.data.loaders.ranking import Group
from rankpo.data.table import ExampleTable
from rankpo.data.text.long_texts import calls, kept_ids, kept_part, token_bound
from rankpo.data.text.special_tokens import SpecialTokens
from rankpo.errors import LoadingError
from rankpo.models.settings import Settings
from rankpo.types import Batch, Labels, Sequences

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


KeyT = TypeVar("KeyT", bound=Hashable)  # The key of one sequence; each kind defines its form.


class GroupKeys(NamedTuple, Generic[KeyT]):
    """Keys of the sequences of one group; equal keys denote one sequence.

    candidates: one key per candidate. query: the key of the query's own sequence, None for models that read the query
    jointly with its candidates.
    """

    candidates: Sequence[KeyT]
    query: KeyT | None = None


class Inputs(ABC, Generic[KeyT]):
    """Base of the inputs of all kinds.

    A kind implements `pieces`, `keys`, `sizes` and `sequences`; all kinds share `costs` and `collate`.
    tokenizer: the tokenizer of the model. settings: the settings of the kind.
    """

    tokenizer: PreTrainedTokenizerBase
    settings: Settings

    @abstractmethod
    def pieces(self) -> Pieces:
        """Returns the conversion of texts to rows of the table."""

    @abstractmethod
    def keys(self, group: Group) -> GroupKeys[KeyT]:
        """Returns the keys of a group's sequences."""

    @abstractmethod
    def sizes(self, table: ExampleTable, keys: Sequence[KeyT]) -> np.ndarray:
        """[len(keys)] int64: tokens of each sequence."""

    @abstractmethod
    def sequences(self, table: ExampleTable, keys: Sequence[KeyT]) -> Sequences:
        """The sequences of the keys, in their order."""

    def positives(self, table: ExampleTable, group: Group) -> Sequence[KeyT]:
        """Returns keys of the texts that any example of the table marks as relevant to the group's query.

        Raises ValueError for models that do not encode texts separately.
        """
        raise ValueError(
            f"{type(self).__name__} reads a query together with its candidates: candidates of other queries cannot be "
            "negatives; use a loss that compares the candidates of one query, such as loss=softmax"
        )

    def labels(self, table: ExampleTable, groups: Sequence[Group]) -> Labels:
        """Returns the labels of the groups; kinds that score tokens add token counts."""
        return labels_of(groups)

    def shared(self, table: ExampleTable, keys: Sequence[KeyT]) -> int:
        """Returns the number of tokens of a group's sequences that the model saves by sharing a prefix."""
        return 0

    def report(self, table: ExampleTable) -> str | None:
        """Returns one line about truncation of the table by the maximum lengths, or None."""
        return None

    def equal_pairs(self, table: ExampleTable) -> list[int]:
        """Returns the indices of examples with two completions that are equal after truncation; kinds that read
        completions define it."""
        return []

    def check_vocabulary(self, backbone: PreTrainedModel, origin: str) -> None:
        """Raises LoadingError for a tokenizer with more tokens than the model has embeddings. origin: of the weights."""
        size, missing = len(self.tokenizer), self.missing_embeddings(backbone)
        if missing > 0:
            raise LoadingError(
                f"{origin}: the tokenizer has {size} tokens, but the model has {size - missing} embeddings; they are not of "
                "one model"
            )

    def missing_embeddings(self, backbone: PreTrainedModel) -> int:
        """Returns the size of the tokenizer minus the number of embeddings; may be negative."""
        table = cast("torch.nn.Embedding", backbone.get_input_embeddings())
        return len(self.tokenizer) - int(table.weight.shape[0])

    def costs(self, table: ExampleTable, groups: Sequence[Group]) -> np.ndarray:
        """[len(groups)] int64: tokens of each group; equal candidates of a group count once."""
        return np.array([self._cost(table, self.keys(group)) for group in groups], dtype=np.int64)

    def _cost(self, table: ExampleTable, keys: GroupKeys[KeyT]) -> int:
        distinct = list(dict.fromkeys(keys.candidates))
        own = [] if keys.query is None else [keys.query]
        return int(self.sizes(table, [*own, *distinct]).sum()) - self.shared(table, distinct)

    def collate(
        self,
        table: ExampleTable,
        groups: Sequence[Group],
        with_positives: bool = False,
        reference: np.ndarray | None = None,
    ) -> Batch:
        """Returns a batch that holds each distinct sequence once, queries before candidates.

        with_positives: fills `Batch.positives`. reference: [slots] stored
        scores of the reference model.
        """
        of_groups = [self.keys(group) for group in groups]
        index: dict[KeyT, int] = {}
        own = [keys.query for keys in of_groups if keys.query is not None]
        queries = [index.setdefault(key, len(index)) for key in own]
        labels = self.labels(table, groups)
        candidates = np.zeros(labels.mask.shape, dtype=np.int64)
        for b, keys in enumerate(of_groups):
            candidates[b, : len(keys.candidates)] = [index.setdefault(key, len(index)) for key in keys.candidates]
        return Batch(
            sequences=self.sequences(table, list(index)),
            queries=torch.tensor(queries, dtype=torch.int64) if own or not groups else None,
            candidates=torch.from_numpy(candidates),
            labels=labels,
            ids=tuple(group.id for group in groups),
            positives=self._positives(table, groups, index) if with_positives else None,
            own_negatives=own_negatives(groups),
            reference=None if reference is None else stored_reference(groups, candidates.shape[1], reference),
        )

    def _positives(self, table: ExampleTable, groups: Sequence[Group], index: dict[KeyT, int]) -> torch.Tensor:
        """[P, 2] pairs (query, sequence) of this batch."""
        pairs = [
            (b, index[key]) for b, group in enumerate(groups) for key in self.positives(table, group) if key in index
        ]
        return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)


class TextSettings(Protocol):
    """Interface of the settings of kinds that encode each text separately. Lengths are in tokens."""

    query_max_length: int
    passage_max_length: int
    query_prompt: str
    passage_prompt: str


class TextInputs(Inputs[tuple[int, str]]):
    """Inputs of models that encode each text separately: prompt, text and special tokens, cut at the role's length.

    The prompt is tokenised together with the text, as sentence-transformers and the servers do, so that a text has
    the same tokens in training, evaluation and deployment. A key is (row of the table, role); the role is ""
    if a row has the same tokens in both roles. Roles are "query" and "candidate".
    """

    @property
    def _texts(self) -> TextSettings:
        return cast("TextSettings", self.settings)

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: Settings) -> None:
        self.tokenizer = tokenizer
        self.settings = settings
        self.special = SpecialTokens.learn(tokenizer)

    @property
    def roles_alike(self) -> bool:
        """Whether a row of the table has the same tokens as query and as candidate."""
        return bool(self._texts.query_max_length == self._texts.passage_max_length)

    def prompt(self, role: str) -> str:
        """Returns the prompt of the role."""
        return str(self._texts.query_prompt if role == "query" else self._texts.passage_prompt)

    def max_length(self, role: str) -> int:
        """Returns the maximum tokens of a sequence of the role, including special tokens."""
        return int(self._texts.query_max_length if role == "query" else self._texts.passage_max_length)

    def pieces(self) -> Pieces:
        prompts = [self.prompt("query"), self.prompt("candidate")]
        state = tokenizer_state(self.tokenizer)
        return Pieces(
            tokenize=self.tokenize,
            query_prefix=prompts[0],
            candidate_prefix=prompts[1],
            fingerprint=xxhash.xxh3_128_hexdigest(json.dumps([state, prompts, self.bound]).encode()),
            own_prompts=True,
        )

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        return kept_ids(self.tokenizer, texts, self.bound, split_special=False)

    @property
    def bound(self) -> int:
        """Maximum tokens of a text in the token store, enough for every role."""
        return token_bound(max(self.max_length("query"), self.max_length("candidate")))

    def kept(self, lengths: np.ndarray, role: str) -> np.ndarray:
        """Returns the tokens of truncated sequences, including special tokens. lengths: tokens of the texts."""
        return np.minimum(lengths + len(self.special), self.max_length(role))

    def assemble(self, tokens: np.ndarray, role: str) -> np.ndarray:
        """[T] ids of one sequence. tokens: [n] ids of a text with its prompt."""
        room = self.max_length(role) - len(self.special)
        return np.concatenate([self.special.head, kept_part(self.tokenizer, tokens, room), self.special.tail]).astype(
            np.int64
        )

    def key(self, row: int, role: str) -> tuple[int, str]:
        return int(row), "" if self.roles_alike else role

    def keys(self, group: Group) -> GroupKeys[tuple[int, str]]:
        candidates = [self.key(row, "candidate") for row in group.candidates]
        return GroupKeys(candidates, self.key(group.query, "query"))

    def sizes(self, table: ExampleTable, keys: Sequence[tuple[int, str]]) -> np.ndarray:
        rows = np.array([row for row, _ in keys], dtype=np.int64)
        asked = np.array([role == "query" for _, role in keys], dtype=bool)
        lengths = table.lengths[rows]
        return np.where(asked, self.kept(lengths, "query"), self.kept(lengths, "candidate")).astype(np.int64)

    def sequences(self, table: ExampleTable, keys: Sequence[tuple[int, str]]) -> Sequences:
        return join([self.assemble(table.tokens(row), role or "candidate") for row, role in keys])

    def positives(self, table: ExampleTable, group: Group) -> Sequence[tuple[int, str]]:
        return [self.key(row, "candidate") for row in table.known_positives(group.query)]

    def sequences_of(self, texts: Sequence[str], role: str) -> Sequences:
        """Returns the token sequences of plain texts in their order, without deduplication."""
        prompted = [self.prompt(role) + text for text in texts]
        # Lists of numbers need several times the memory of arrays, so that each call's become arrays at once.
        encoded = (ids for call in calls(prompted) for ids in self.tokenize(call))
        return join([self.assemble(np.asarray(ids, dtype=np.int64), role) for ids in encoded])


def tokenizer_state(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns a string that identifies the tokenizer, including the ids of its special tokens.

    A fast tokenizer's own state does not include the choice of eos and bos, so this function adds it.
    """
    state = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else repr(tokenizer)
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    flags = [getattr(tokenizer, name, None) for name in ("add_bos_token", "add_eos_token", "add_prefix_space")]
    side = [tokenizer.truncation_side] if tokenizer.truncation_side == "left" else []
    return json.dumps([state, special, flags, *side], sort_keys=True)
