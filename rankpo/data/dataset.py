"""The interfaces between a dataset, the pieces that make its texts into tokens, and the table that holds them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from rankpo.data.readers.passes import PassReport
from rankpo.data.text.conversations import plain_text
from rankpo.types import Example

Tokenize = Callable[[Sequence[str]], list[list[int]]]


class Dataset(Protocol):
    """What a dataset must offer: a name, a fingerprint of contents and settings, and a stream of examples."""

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
    """How texts become token rows: the role's prefix goes in front, special tokens and truncation come later.

    fingerprint: changes whenever `tokenize` or a prefix would give other tokens. render: an example's query and
    candidates as `tokenize` wants them, in place of prefix + text; raises BadRecord for an example that has no such
    form. notes: what `tokenize` counted, kept with the table. own_prompts: whether a record's own prompt takes the place
    of the query's prefix; else it stands behind it, as a part of the query.
    """

    tokenize: Tokenize
    query_prefix: str
    candidate_prefix: str
    fingerprint: str
    render: Callable[[Example], tuple[str, Sequence[str]]] | None = None
    notes: Callable[[], Mapping[str, int]] | None = None
    own_prompts: bool = False

    def texts(self, example: Example) -> tuple[str, Sequence[str]]:
        """The texts under which an example's query and candidates stand in the store."""
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
        """What stands before a text. prefix: of its role. prompt: of its record, or None."""
        if prompt is None:
            return prefix
        return prompt if self.own_prompts else prefix + prompt
