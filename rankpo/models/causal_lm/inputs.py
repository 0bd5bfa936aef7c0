"""Inputs of causal language models: prompt and completion as one sequence, with labels on the completion."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import xxhash

from rankpo.data.batch import labels_of
from rankpo.data.dataset import Pieces
from rankpo.data.loaders.ranking import Group
from rankpo.data.table import ExampleTable
from rankpo.data.text.continuation import Continuation
from rankpo.data.text.conversations import ChatFormat, shortened
from rankpo.data.text.cutting import cut_turns
from rankpo.data.text.long_texts import ROOM_FOR_ENDS, token_bound
from rankpo.data.text.special_tokens import SpecialTokens
from rankpo.models.causal_lm.settings import CausalSettings
from rankpo.models.inputs import GroupKeys, Inputs, tokenizer_state
from rankpo.types import Example, Labels, Prompt, Sequences, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 3  # Raise it with every change of a text's tokens.
# These marks precede a text in the store and select its conversion; they separate equal prompts and completions.
PLAIN_PROMPT, CHAT_PROMPT, COMPLETION, WHOLE = "p:", "P:", "c:", "w:"


class Piece(NamedTuple):
    """One sequence: rows of the table, and the id of a control token between them, or -1."""

    prompt: int
    completion: int
    control: int


class CompletionInputs(Inputs[Piece]):
    """The inputs of causal language models: a prompt and a completion as one sequence.

    Plain prompts and completions are unchanged, with eos after the completion. Conversations get the chat format, which
    includes an end token. First and end tokens that a text already contains are not added again. Truncated completions
    of a model have no end token. A prompt above max_prompt_length loses its oldest turns, and then the beginning of its
    longest turn without the tokens of the template; a plain prompt loses its beginning. A completion is cut at
    max_length.
    """

    settings: CausalSettings

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: CausalSettings) -> None:
        self.tokenizer, self.settings = tokenizer, settings
        self.chat = ChatFormat.learn(tokenizer, settings.chat_template)
        self.bound = token_bound(settings.max_length + ROOM_FOR_ENDS)
        self.head = SpecialTokens.learn(tokenizer).head
        self.continuation = Continuation(tokenizer, self.bound, num_first=max(1, len(self.head)))
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        self.empty = self.head or (first,)  # Empty prompts need a context token.
        self.control = self._control_ids()
        self.share_prompts = False  # see `sharing_prompts`
        self.shortened = self.cut = 0

    def _control_ids(self) -> tuple[int, int] | None:
        """Ids of the control tokens for desirable and undesirable completions, added to the tokenizer if new."""
        if self.settings.control_tokens is None:
            return None
        good, bad = self.settings.control_tokens
        self.tokenizer.add_special_tokens(
            {"additional_special_tokens": [good, bad]}, replace_extra_special_tokens=False
        )
        ids = [self.tokenizer.encode(token, add_special_tokens=False) for token in (good, bad)]
        return ids[0][0], ids[1][0]

    @property
    def stops(self) -> tuple[int, ...]:
        """Ids of the tokens that end generation: the end of a turn, and eos for plain texts."""
        last = self.continuation.whole([self.chat.ending])[0][-1]
        return tuple(sorted({int(last), int(self.tokenizer.eos_token_id)}))

    def pieces(self) -> Pieces:
        own = [self.head, self.empty, self.settings.max_prompt_length, self.bound]
        parts = [VERSION, tokenizer_state(self.tokenizer), self.chat.template, *own]
        return Pieces(
            tokenize=self.tokenize,
            query_prefix="",
            candidate_prefix="",
            fingerprint=xxhash.xxh3_128_hexdigest(json.dumps(parts).encode()),
            render=self.render,
            notes=lambda: {"prompts_shortened": self.shortened, "prompts_cut": self.cut},
        )

    def render(self, example: Example) -> tuple[str, list[str]]:
        """Returns prompt and completions as texts of the store, with marks for their conversion.

        Raises BadRecord for a conversation that the chat template refuses or does not show as it is.
        """
        whole = example.finished or (True,) * len(example.candidates)
        answers = list(zip(example.candidates, whole, strict=True))
        if isinstance(example.query, str):
            mark = COMPLETION if example.query else WHOLE
            return PLAIN_PROMPT + example.query, [mark + self._ended(text, finished) for text, finished in answers]
        turns = example.query
        prompt = self.chat.prompt(turns)
        texts = [self.chat.behind(prompt, turns, text, finished=finished) for text, finished in answers]
        return CHAT_PROMPT + json.dumps([prompt, turns]), [COMPLETION + text for text in texts]

    def _ended(self, text: str, finished: bool) -> str:
        """Returns a plain completion with exactly one end token."""
        if not finished:
            return text
        ends = tuple({str(self.tokenizer.eos_token), self.chat.ending.strip()})
        return text.rstrip() if text.rstrip().endswith(ends) else text + str(self.tokenizer.eos_token)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of marked texts; prompts already cut to max_prompt_length."""
        rows: list[list[int]] = [[] for _ in texts]
        encodes = {COMPLETION: self.continuation.ids, PLAIN_PROMPT: self.continuation.ends}
        chosen = [encodes.get(text[:2], self.continuation.whole) for text in texts]
        for encode in set(chosen):
            numbers = [n for n, own in enumerate(chosen) if own == encode]
            encoded = encode([_bare(texts[n]) for n in numbers])
            for number, ids in zip(numbers, encoded, strict=True):
                rows[number] = self._fit(texts[number], ids)
        return rows

    def _fit(self, text: str, ids: list[int]) -> list[int]:
        mark = text[:2]
        if mark == PLAIN_PROMPT:
            return self._plain_prompt(ids)
        if mark == WHOLE:  # The empty prompt is the first token.
            return ids[len(self.empty) :] if tuple(ids[: len(self.empty)]) == self.empty else ids
        return self._chat_prompt(_turns(text), ids) if mark == CHAT_PROMPT else ids

    def _plain_prompt(self, ids: list[int]) -> list[int]:
        """Returns the prompt with exactly one first token, from the tokenizer or from the text."""
        head = self.head
        if not head and ids[:1] == [self.tokenizer.bos_token_id]:
            head = tuple(ids[:1])
        rest = ids[len(head) :] if tuple(ids[: len(head)]) == head else ids
        room = self.settings.max_prompt_length - len(head)
        self.cut += len(rest) > room
        return [*head, *rest[-room:]] if ids else list(self.empty)

    def _chat_prompt(self, turns: Sequence[Turn], ids: list[int]) -> list[int]:
        limit = self.settings.max_prompt_length
        if len(ids) <= limit:
            return ids
        self.shortened += 1
        rest = shortened(turns)
        while len(ids) > limit and rest is not None:
            turns, (ids,) = rest, self.continuation.whole([self.chat.prompt(rest)])
            rest = shortened(turns)
        if len(ids) <= limit:
            return ids
        self.cut += 1
        return self._cut_inside(turns)

    def _cut_inside(self, turns: Sequence[Turn]) -> list[int]:
        """Ids of the conversation with its longest turns cut, so that the frame around them stays."""
        limit = self.settings.max_prompt_length
        encode = self.continuation.whole
        room = limit
        while True:
            cut = cut_turns(self.tokenizer, turns, room)
            (ids,) = encode([self.chat.prompt(cut)])
            if len(ids) <= limit:
                return ids
            if room <= 0:
                raise ValueError(
                    f"model.max_prompt_length={limit} is less than the {len(ids)} tokens that the chat template puts "
                    "around the turns; set a larger one"
                )
            room = max(0, room - (len(ids) - limit))

    def piece(self, prompt: int, completion: int, relevance: float) -> Piece:
        if self.control is None:
            return Piece(prompt, completion, -1)
        return Piece(prompt, completion, self.control[0] if relevance > 0 else self.control[1])

    def completion_lengths(self, table: ExampleTable, pieces: Sequence[Piece]) -> np.ndarray:
        """[len(pieces)] int64 scored tokens of each piece, after the cut."""
        prompts, completions = table.lengths[[p.prompt for p in pieces]], table.lengths[[p.completion for p in pieces]]
        controls = np.array([piece.control >= 0 for piece in pieces], dtype=np.int64)
        return np.minimum(completions, self.settings.max_length - prompts - controls)

    def sizes(self, table: ExampleTable, keys: Sequence[Piece]) -> np.ndarray:
        """[len(keys)] int64 tokens of each piece, prompt and control token included."""
        controls = np.array([piece.control >= 0 for piece in keys], dtype=np.int64)
        return table.lengths[[p.prompt for p in keys]] + controls + self.completion_lengths(table, keys)

    def sequences(self, table: ExampleTable, keys: Sequence[Piece]) -> Sequences:
        """Prompt and completion of each piece as one sequence; labels on the completion alone."""
        numbers: dict[int, int] = {}
        prefixes = [(numbers.setdefault(p.prompt, len(numbers)), table.lengths[p.prompt]) for p in keys]
        parts = []
        for piece, scored in zip(keys, self.completion_lengths(table, keys).tolist(), strict=True):
            control = [piece.control] if piece.control >= 0 else []
            given = np.concatenate([table.tokens(piece.prompt), np.array(control, dtype=np.int64)])
            parts.append((given, table.tokens(piece.completion)[:scored]))
        return _labelled(parts, prefixes)

    def sequences_of(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> Sequences:
        """Returns one sequence for each prompt with its completion, for texts outside the table.

        With control tokens, the completion follows the desirable one, as in inference.
        """
        numbers: dict[Prompt, int] = {}
        prefixes, parts = [], []
        for prompt, completion in zip(prompts, completions, strict=True):
            text, (answer,) = self.render(Example(prompt, (completion,), (1.0,), ""))
            given, scored = (np.array(ids, dtype=np.int64) for ids in self.tokenize([text, answer]))
            prefixes.append((numbers.setdefault(prompt, len(numbers)), len(given)))
            given = given if self.control is None else np.append(given, self.control[0])
            parts.append((given, scored[: self.settings.max_length - len(given)]))
        return _labelled(parts, prefixes)

    def keys(self, group: Group) -> GroupKeys[Piece]:
        return GroupKeys(self._pieces(group))

    def shared(self, table: ExampleTable, keys: Sequence[Piece]) -> int:
        """Returns the tokens saved when the model computes the prompt once for all completions, else 0."""
        return (len(keys) - 1) * int(table.lengths[keys[0].prompt]) if self.share_prompts and keys else 0

    def sharing_prompts(self, share_prompts: bool) -> CompletionInputs:
        """Returns a copy of these inputs. share_prompts: whether the model computes a prompt once for all completions."""
        other = copy.copy(self)
        other.share_prompts = share_prompts
        return other

    def _pieces(self, group: Group) -> list[Piece]:
        pairs = zip(group.candidates.tolist(), group.relevance.tolist(), strict=True)
        return [self.piece(group.query, row, relevance) for row, relevance in pairs]

    def labels(self, table: ExampleTable, groups: Sequence[Group]) -> Labels:
        """The labels of groups, with the scored tokens of each candidate."""
        labels = labels_of(groups)
        lengths = np.zeros(labels.relevance.shape, dtype=np.int64)
        for b, group in enumerate(groups):
            lengths[b, : len(group.candidates)] = self.completion_lengths(table, self._pieces(group))
        return replace(labels, lengths=torch.from_numpy(lengths))

    def slot_pieces(self, table: ExampleTable) -> list[Piece]:
        """The piece of every candidate slot of the table."""
        prompts = np.repeat(np.asarray(table.query), np.diff(table.offsets)).tolist()
        relevance = table.relevant("model.control_tokens") if self.control else np.asarray(table.relevance)
        rows = zip(prompts, np.asarray(table.candidates).tolist(), relevance.tolist(), strict=True)
        return [self.piece(*row) for row in rows]

    def equal_pairs(self, table: ExampleTable) -> list[int]:
        """Returns the indices of examples with two completions that are equal after truncation."""
        pieces = self.slot_pieces(table)
        kept, found = self.completion_lengths(table, pieces), []
        for example in np.flatnonzero(np.diff(table.offsets) == 2).tolist():
            first, second = table.slots(example).tolist()
            rows, lengths = (pieces[first].completion, pieces[second].completion), (kept[first], kept[second])
            if lengths[0] != lengths[1]:
                continue
            one, other = (table.tokens(row)[: lengths[0]] for row in rows)
            if rows[0] == rows[1] or np.array_equal(one, other):
                found.append(example)
        return found

    def report(self, table: ExampleTable) -> str | None:
        """Returns a line about truncation of this table by the maximum lengths, or None."""
        pieces = self.slot_pieces(table)
        cut = int((self.completion_lengths(table, pieces) < table.lengths[[p.completion for p in pieces]]).sum())
        counts = {**table.notes, "completions_cut": cut}
        named = [f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count]
        return f"of {len(pieces)} completions: {', '.join(named)} (model.max_length)" if named else None


def _bare(text: str) -> str:
    """A text of the store without its mark and, of a conversation, its turns."""
    return str(json.loads(text[2:])[0]) if text[:2] == CHAT_PROMPT else text[2:]


def _turns(text: str) -> tuple[Turn, ...]:
    return tuple((name, content) for name, content in json.loads(text[2:])[1])


def _labelled(parts: Sequence[tuple[np.ndarray, np.ndarray]], prefixes: Sequence[tuple[int, int]]) -> Sequences:
    """Sequences of (given tokens, scored tokens), labelled on the scored ones."""
    ids = [tokens for pair in parts for tokens in pair]
    labels = [tokens for given, scored in parts for tokens in (np.full(len(given), -100), scored)]
    return Sequences(
        input_ids=_concatenated(ids),
        lengths=torch.tensor([len(given) + len(scored) for given, scored in parts], dtype=torch.int64),
        labels=_concatenated(labels),
        prefixes=torch.tensor(prefixes, dtype=torch.int64).reshape(-1, 2),
    )


def _concatenated(parts: Sequence[np.ndarray]) -> torch.Tensor:
    joined = np.concatenate(parts) if parts else np.zeros(0)
    return torch.from_numpy(joined.astype(np.int64))
