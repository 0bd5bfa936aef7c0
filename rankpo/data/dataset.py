"""Interfaces of datasets, and the pieces that convert their texts to tokens for a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from rankpo.data.readers.passes import PassReport
from rankpo.data.text.conversations import plain_text
from rankpo.types import Example

Tokenize = Callable[[Sequence[str]], list[list[int]]]


class Dataset(Protocol):
    """A dataset with a name, a fingerprint of contents and settings, and a stream of examples."""

    @property
    def name(self) -> str: ...

    def fingerprint(self) -> str: ...

    def examples(self) -> Iterator[Example]: ...


@runtime_checkable
class CollectsBadRecords(Protocol):
    """A dataset that collects its bad records, and raises or skips them at the end of a pass."""

    def note(self, place: str, error: ValueError) -> None: ...


@runtime_checkable
class ReportsPasses(Protocol):
    """A dataset that keeps a report of its last pass."""

    report: PassReport


@dataclass(frozen=True)
class Pieces:
    """The conversion of texts to token rows. A text gets the prefix of its role; special tokens are added later.

    fingerprint: changes if `tokenize` or a prefix would give different tokens. render: returns an example's query and
    candidates as input of `tokenize`, in place of prefix + text; raises BadRecord for an unsupported example. notes:
    counts of `tokenize`, stored with the table. own_prompts: whether a record's prompt replaces the prefix of the query;
    if not, the prompt follows the prefix as a part of the query.
    """

    tokenize: Tokenize
    query_prefix: str
    candidate_prefix: str
    fingerprint: str
    render: Callable[[Example], tuple[str, Sequence[str]]] | None = None
    notes: Callable[[], Mapping[str, int]] | None = None
    own_prompts: bool = False

    def texts(self, example: Example) -> tuple[str, Sequence[str]]:
        """The texts of an example's query and candidates, as keys of the store."""
        prompt = example.query_prompt
        if self.render is not None:
            own = prompt is not None and isinstance(example.query, str)
            example = replace(example, query=f"{prompt}{example.query}") if own else example
            if example.passage_prompt is not None:
                texts = tuple(example.passage_prompt + text for text in example.candidates)
                example = replace(example, candidates=texts)
            return self.render(example)
        before = self._before(self.query_prefix, prompt)
        after = before if example.symmetric else self._before(self.candidate_prefix, example.passage_prompt)
        return before + plain_text(example.query), [after + text for text in example.candidates]

    def _before(self, prefix: str, prompt: str | None) -> str:
        """The text before a query or candidate. prefix: the prefix of its role. prompt: of its record, or None."""
        if prompt is None:
            return prefix
        return prompt if self.own_prompts else prefix + prompt
