"""Inputs of listwise rerankers: a query and its passages as one sequence, followed by the answer in training."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import xxhash

from rankpo.data.batch import join, labels_of
from rankpo.data.dataset import Pieces
from rankpo.data.loaders.ranking import Group
from rankpo.data.table import ExampleTable
from rankpo.data.text.conversations import plain_text
from rankpo.data.text.cutting import fit
from rankpo.data.text.long_texts import leading_ids, token_bound
from rankpo.models.inputs import GroupKeys, Inputs, tokenizer_state
from rankpo.models.listwise.layout import ListwiseLayout
from rankpo.models.listwise.settings import ListwiseSettings
from rankpo.types import Example, Labels, Sequences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 1  # Raise it with every change of a text's tokens.
SHOWN_TOKENS = 40  # Tokens of each end of the prompt in the log.
QUERY, PASSAGE = "q:", "p:"  # Marks before a text in the store.


@dataclass(frozen=True, eq=False)
class _OneList:
    """The key of a group's sequence; every group has a separate sequence."""

    group: Group


class ListwiseInputs(Inputs[_OneList]):
    """The inputs of `ListwiseModel`: one sequence per group, a query and its passages in the given order.

    answers: whether `collate` appends the answer to the prompt, for generative objectives. The labels are -100 on the
    prompt and the token ids on the answer, so that they define the score position, the last token of the prompt.
    """

    settings: ListwiseSettings

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: ListwiseSettings) -> None:
        self.tokenizer = tokenizer
        self.settings = settings
        self.layout = ListwiseLayout(tokenizer, settings)
        self.answers = False
        self.escaped = 0
        own = self.layout.identifiers
        known = r"\d+" if own.scheme == "numbers" else "[A-Z]"
        begin, end = re.escape(own.open), re.escape(own.close)
        self.lookalike = re.compile(f"{begin}({known}){end}") if own.open and own.close else None

    @property
    def window(self) -> int:
        return self.settings.window

    def pieces(self) -> Pieces:
        state = tokenizer_state(self.tokenizer)
        layout, own = self.layout, self.layout.identifiers
        escaping = [own.scheme, own.open, own.close, self.settings.escape_identifiers]
        parts = [VERSION, state, layout.query_prefix, layout.text_prefix, escaping, self.bound]
        return Pieces(
            tokenize=self.tokenize,
            query_prefix=QUERY,
            candidate_prefix=PASSAGE,
            fingerprint=xxhash.xxh3_128_hexdigest(json.dumps(parts).encode()),
            render=self.render,
            notes=lambda: {"identifiers_escaped": self.escaped},
        )

    def render(self, example: Example) -> tuple[str, list[str]]:
        return QUERY + plain_text(example.query), [PASSAGE + text for text in example.candidates]

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of marked texts, after the template's white space, with special tokens as plain letters."""
        escaped: dict[int, int] = {}  # By index of the text, counted in the used beginning of long texts.

        def clean(number: int, text: str) -> str:
            words, escaped[number] = self._clean(text[:2], text[2:])
            return words

        ids = leading_ids(self.tokenizer, texts, self.bound, split_special=True, prepare=clean)
        self.escaped += sum(escaped.values())
        return ids

    @property
    def bound(self) -> int:
        """Maximum tokens of a text in the token store, enough for every list."""
        return token_bound(self.settings.max_length)

    def _clean(self, mark: str, text: str) -> tuple[str, int]:
        """Returns a marked text as it appears in the template, and the number of escaped identifiers in it."""
        words, found = " ".join(text.split()), 0
        if mark == QUERY:
            return self.layout.query_prefix + words, 0
        if self.settings.escape_identifiers and self.lookalike is not None:
            words, found = self.lookalike.subn(r"(\1)", words)
        return self.layout.text_prefix + words, found

    def kept(self, query: int, passages: np.ndarray, name: str = "") -> tuple[int, np.ndarray]:
        """Returns the kept tokens of a query and passages of these lengths. name: of the query, for messages.

        Raises ValueError if even passages of the minimum length do not fit.
        """
        settings, layout = self.settings, self.layout
        room = settings.max_length - layout.num_fixed(len(passages)) - layout.reserve(len(passages))
        for limit in (query, min(query, settings.max_query_tokens)):
            kept, cap = fit(passages, room - layout.num_queries * limit, settings.max_passage_tokens)
            if cap >= settings.min_passage_tokens:
                return limit, kept
        raise ValueError(
            f"query {name or 'of ' + str(query) + ' tokens'} with {len(passages)} passages does not fit into "
            f"model.max_length={settings.max_length}: the template has {layout.num_fixed(len(passages))} tokens "
            f"and the answer {layout.reserve(len(passages))}, which leaves {max(cap, 0)} tokens per passage, below "
            f"model.min_passage_tokens={settings.min_passage_tokens}; lower model.window"
        )

    def prompt(self, query: np.ndarray, passages: Sequence[np.ndarray], name: str = "") -> np.ndarray:
        """[T] ids of a prompt; its last token is the score position."""
        limit, kept = self.kept(len(query), np.array([len(ids) for ids in passages]), name)
        texts = iter(ids[:size] for ids, size in zip(passages, kept.tolist(), strict=True))
        parts = []
        for part in self.layout.parts(len(passages)):
            ids = query[:limit] if part == "query" else next(texts) if part == "text" else part
            parts.append(np.asarray(ids, dtype=np.int64))
        return np.concatenate(parts)

    def answer(self, relevance: np.ndarray) -> np.ndarray:
        """Token ids of the answer by descending relevance, ties in the given order, with the end token."""
        order = np.argsort(-relevance, kind="stable").tolist()
        return np.array([*self.layout.identifiers.answer(order), *self.layout.end], dtype=np.int64)

    def keys(self, group: Group) -> GroupKeys[_OneList]:
        """Returns one key per group, shared by its candidates."""
        return GroupKeys([_OneList(group)] * len(group.candidates))

    def sizes(self, table: ExampleTable, keys: Sequence[_OneList]) -> np.ndarray:
        return np.array([self._size(table, key.group) for key in keys], dtype=np.int64)

    def _size(self, table: ExampleTable, group: Group) -> int:
        count = len(group.candidates)
        limit, kept = self.kept(int(table.lengths[group.query]), table.lengths[group.candidates], group.id)
        answer = self.layout.reserve(count) if self.answers else 0
        return self.layout.num_fixed(count) + self.layout.num_queries * limit + int(kept.sum()) + answer

    def sequences(self, table: ExampleTable, keys: Sequence[_OneList]) -> Sequences:
        groups = [key.group for key in keys]
        prompts = [
            self.prompt(table.tokens(group.query), [table.tokens(int(row)) for row in group.candidates], group.id)
            for group in groups
        ]
        return self._with_answers(prompts, groups) if self.answers else join(prompts)

    def labels(self, table: ExampleTable, groups: Sequence[Group]) -> Labels:
        """Returns the labels of groups; with answers, `lengths` counts the answer tokens of each passage."""
        labels = labels_of(groups)
        if not self.answers:
            return labels
        own = self.layout.identifiers
        counts = labels.mask.sum(1)
        lengths = torch.where(labels.mask, 1 + len(own.between), 0)
        last = torch.arange(labels.mask.shape[1])[None] == counts[:, None] - 1
        closing = 1 + len(own.tail) + len(self.layout.end)
        return replace(labels, lengths=torch.where(last, closing, lengths))

    def _with_answers(self, prompts: Sequence[np.ndarray], groups: Sequence[Group]) -> Sequences:
        answers = [self.answer(group.relevance) for group in groups]
        whole = join([np.concatenate(pair) for pair in zip(prompts, answers, strict=True)])
        labels = [
            part for prompt, ids in zip(prompts, answers, strict=True) for part in (np.full(len(prompt), -100), ids)
        ]
        return Sequences(whole.input_ids, whole.lengths, torch.from_numpy(np.concatenate(labels)))

    def shown(self, table: ExampleTable, group: Group) -> str:
        """Returns the prompt of a group for the log: both ends with token borders, and the score position."""
        ids = self.prompt(
            table.tokens(group.query), [table.tokens(int(row)) for row in group.candidates], group.id
        ).tolist()
        tokens = [str(self.tokenizer.decode([token])) for token in ids]
        middle = ["…"] if len(tokens) > 2 * SHOWN_TOKENS else []
        ends = [*tokens[:SHOWN_TOKENS], *middle, *tokens[-SHOWN_TOKENS:]] if middle else tokens
        own = self.layout.identifiers
        read = ", ".join(f"{label} {token}" for label, token in zip(own.labels[:3], own.first, strict=False))
        return f"first prompt, {len(ids)} tokens, scored at the last by {read}, …: {'│'.join(ends)!r}"

    def report(self, table: ExampleTable) -> str | None:
        """Returns a line about truncated or rewritten texts in this table's lists, or None."""
        settings = self.settings
        passages = np.asarray(table.candidates)
        cut = int((table.lengths[passages] > settings.max_passage_tokens).sum())
        counts = {**table.notes, "passages_cut": cut}
        named = [f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count]
        return f"of {len(passages)} passages: {', '.join(named)} (model.max_passage_tokens)" if named else None
