"""Inputs of rerankers: query and document as one sequence, truncated without loss of the fixed parts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import xxhash

from rankpo.data.batch import join
from rankpo.data.dataset import Pieces
from rankpo.data.loaders.ranking import Group
from rankpo.data.table import ExampleTable
from rankpo.data.text.long_texts import calls, kept_ids, kept_part, token_bound
from rankpo.data.text.whole_texts import whole_ids
from rankpo.models.inputs import GroupKeys, Inputs, tokenizer_state
from rankpo.models.reranker.layout import PairLayout, make_layout
from rankpo.models.reranker.settings import SMALLEST_QUERY, RerankerSettings
from rankpo.types import Sequences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_OVERLAP = 80  # Maximum overlap of two slices in tokens.


@dataclass(frozen=True)
class Truncation:
    """Truncation over a table: pairs with a truncated document or query, lost tokens, longest pair.

    at_least: whether the table holds only the beginnings of some texts, so that counts are lower bounds.
    """

    pairs: int
    documents_cut: int
    queries_cut: int
    tokens_dropped: int
    longest: int
    first_cut: str | None
    at_least: bool = False

    def summary(self) -> str:
        least = "at least " if self.at_least else ""
        text = f"{self.pairs} pairs, the longest {least}{self.longest} tokens: "
        if not (self.documents_cut or self.queries_cut):
            return text + "none is truncated"
        return text + (
            f"{self.documents_cut} documents and {self.queries_cut} queries are truncated by {least}"
            f"{self.tokens_dropped} tokens in all, the first in example {self.first_cut}"
        )


class RerankerInputs(Inputs[tuple[int, int]]):
    """The inputs of `RerankerModel`: before · query · between · document · after, at most `max_length` tokens.

    Raises ValueError if the fixed tokens leave no room for a short query and the shortest document.
    """

    settings: RerankerSettings

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: RerankerSettings) -> None:
        self.tokenizer = tokenizer
        self.settings = settings
        self.layout: PairLayout = make_layout(tokenizer, settings)
        self.room = settings.max_length - self.layout.num_fixed  # U
        heads = self.heads = [
            len(ids) for ids in self.tokenize([self.layout.query_prefix, self.layout.document_prefix])
        ]
        self.smallest_document = settings.min_document_tokens + heads[1]  # m
        needed = self.layout.num_fixed + heads[0] + self.smallest_document + SMALLEST_QUERY
        if settings.max_length < needed:
            raise ValueError(
                f"model.max_length={settings.max_length} is too small: {self.layout.num_fixed} fixed tokens, "
                f"{sum(heads)} of the formats, {settings.min_document_tokens} of a document and {SMALLEST_QUERY} of a "
                f"query need {needed}"
            )

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        return kept_ids(self.tokenizer, texts, self.bound, split_special=True)

    @property
    def bound(self) -> int:
        """Maximum tokens of a text in the token store, enough for every pair."""
        return token_bound(self.settings.max_length)

    def pieces(self) -> Pieces:
        state = tokenizer_state(self.tokenizer)
        prefixes = [self.layout.query_prefix, self.layout.document_prefix]
        return Pieces(
            tokenize=self.tokenize,
            query_prefix=prefixes[0],
            candidate_prefix=prefixes[1],
            fingerprint=xxhash.xxh3_128_hexdigest(
                json.dumps([state, prefixes, "special tokens are text", self.bound]).encode()
            ),
        )

    def cut(self, query: np.ndarray, document: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the kept tokens of pieces with these lengths, heads included, according to `truncation`."""
        if self.settings.query_max_length is not None:
            query = np.minimum(query, self.settings.query_max_length)
        if self.settings.truncation == "longest_first":
            return self._longest_first(query, document)
        fits = query + document <= self.room
        short = np.maximum(self.room - query, np.minimum(document, self.smallest_document))
        kept = np.where(fits, document, np.minimum(document, short))
        return np.minimum(query, self.room - kept), kept

    def _longest_first(self, query: np.ndarray, document: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cuts the longer piece to the length of the other; of an odd room, the longer piece keeps one token more."""
        half, rest = self.room // 2, self.room - self.room // 2
        longer = query > document
        return (
            np.minimum(query, np.maximum(np.where(longer, rest, half), self.room - document)),
            np.minimum(document, np.maximum(np.where(longer, half, rest), self.room - query)),
        )

    def lengths(self, query: np.ndarray, document: np.ndarray) -> np.ndarray:
        """Returns the tokens of whole pairs after truncation."""
        return self.layout.num_fixed + np.add(*self.cut(query, document))

    def assemble(self, query: np.ndarray, document: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns token ids and token types (None for models without them) of a pair of pieces."""
        layout = self.layout
        first, second = (int(kept) for kept in self.cut(np.asarray(len(query)), np.asarray(len(document))))
        kept = kept_part(self.tokenizer, query, first), kept_part(self.tokenizer, document, second)
        parts = (layout.before, kept[0], layout.between, kept[1], layout.after)
        ids = np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])
        if layout.types is None:
            return ids, None
        before, of_query, between, of_document, after = layout.types
        return ids, np.array([*before, *[of_query] * first, *between, *[of_document] * second, *after], dtype=np.int64)

    def keys(self, group: Group) -> GroupKeys[tuple[int, int]]:
        """A key is (row of the query, row of the candidate)."""
        return GroupKeys([(group.query, row) for row in group.candidates.tolist()])

    def sizes(self, table: ExampleTable, keys: Sequence[tuple[int, int]]) -> np.ndarray:
        rows = np.array(keys, dtype=np.int64).reshape(-1, 2)
        return self.lengths(table.lengths[rows[:, 0]], table.lengths[rows[:, 1]])

    def sequences(self, table: ExampleTable, keys: Sequence[tuple[int, int]]) -> Sequences:
        return _joined([self.assemble(table.tokens(query), table.tokens(document)) for query, document in keys])

    def slices(self, query: np.ndarray, document: np.ndarray) -> list[np.ndarray]:
        """Returns the document's piece, or overlapping slices of a long document, each after the document's head.

        Adjacent slices overlap by a quarter of a slice, at most MAX_OVERLAP tokens.
        """
        longest = self.settings.query_max_length or len(query)
        budget = max(self.room - min(len(query), longest), self.smallest_document)
        if len(document) <= budget:
            return [document]
        head, text = document[: self.heads[1]], document[self.heads[1] :]
        size = budget - len(head)
        step = size - min(MAX_OVERLAP, size // 4)
        starts = range(0, len(text) - size + step, step)
        return [np.concatenate([head, text[start : start + size]]) for start in starts]

    def sliced(self, pairs: Sequence[tuple[str, str]]) -> tuple[Sequences, torch.Tensor]:
        """Returns token sequences of pairs of texts, with slices of long documents, and the pair's index of each one."""
        pieces = [
            (query, part, number)
            for number, (query, document) in enumerate(self._pieces(pairs, whole=True))
            for part in self.slices(query, document)
        ]
        owners = torch.tensor([number for _, _, number in pieces], dtype=torch.int64)
        return _joined([self.assemble(query, part) for query, part, _ in pieces]), owners

    def sequences_of(self, pairs: Sequence[tuple[str, str]]) -> Sequences:
        """Returns token sequences of pairs of texts in order, truncated to the maximum length."""
        return _joined([self.assemble(query, document) for query, document in self._pieces(pairs)])

    def _pieces(self, pairs: Sequence[tuple[str, str]], whole: bool = False) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the token ids of each pair's texts with their heads; every distinct text is tokenised once.

        whole: keeps all tokens of long texts, for slices.
        """
        queries = {self.layout.query_prefix + query: None for query, _ in pairs}
        documents = {self.layout.document_prefix + document: None for _, document in pairs}
        texts = list({**queries, **documents})
        if whole:
            rows = list(whole_ids(self.tokenizer, texts))
        else:
            rows = [np.asarray(ids, dtype=np.int64) for call in calls(texts) for ids in self.tokenize(call)]
        ids = dict(zip(texts, rows, strict=True))
        for query, document in pairs:
            yield ids[self.layout.query_prefix + query], ids[self.layout.document_prefix + document]

    def report(self, table: ExampleTable) -> str:
        return self.truncation(table).summary()

    def truncation(self, table: ExampleTable) -> Truncation:
        """Measures truncation over all pairs of a table."""
        example = np.repeat(np.arange(len(table)), np.diff(table.offsets))
        query, document = table.lengths[np.asarray(table.query)[example]], table.lengths[np.asarray(table.candidates)]
        kept = self.cut(query, document)
        cut = (kept[0] < query) | (kept[1] < document)
        return Truncation(
            pairs=len(document),
            documents_cut=int((kept[1] < document).sum()),
            queries_cut=int((kept[0] < query).sum()),
            tokens_dropped=int((query - kept[0] + document - kept[1]).sum()),
            longest=int((query + document).max(initial=0)) + self.layout.num_fixed,
            first_cut=table.id(int(example[cut.argmax()])) if cut.any() else None,
            at_least=bool((table.lengths >= self.bound).any()),
        )


def _joined(parts: Sequence[tuple[np.ndarray, np.ndarray | None]]) -> Sequences:
    plain = join([ids for ids, _ in parts])
    types = [kinds for _, kinds in parts if kinds is not None]
    return Sequences(plain.input_ids, plain.lengths, token_types=join(types).input_ids if types else None)
