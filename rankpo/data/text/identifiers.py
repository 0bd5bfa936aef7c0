"""Identifiers of passages, with a check that each is a single token in the answer of the model.

The logit of "B" is the score of passage B only if the tokenizer gives "B" its own token there. Some tokenizers encode "[A"
as one token and "[O" as two. The check therefore tokenises the answer after the real end of the prompt.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rankpo.data.text.prompt_templates import PromptTemplate
from rankpo.data.text.tokens import fixed_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Encode = Callable[[str], tuple[int, ...]]
AUTO = ("letters", "numbers", "bare_letters", "pieces")


class SchemeError(ValueError):
    """Raised if identifiers of a scheme are not single tokens. failing: these identifiers; empty if all fail."""

    def __init__(self, message: str, failing: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.failing = tuple(failing)


@dataclass(frozen=True)
class Identifiers:
    """Identifiers as token ids: an answer is prefix + first[a] + between + later[b] + between + … + tail.

    labels: their texts, without open and close. The prefix belongs to the prompt, whose last token is the score
    position; first and later: one id for each label, in the first place and in all others. canonical: these are the
    ids of the written answer; otherwise (scheme `pieces`) the tokenizer may encode the same answer differently.
    """

    scheme: str
    labels: tuple[str, ...]
    open: str
    close: str
    separator: str
    prefix: tuple[int, ...]
    first: tuple[int, ...]
    between: tuple[int, ...]
    later: tuple[int, ...]
    tail: tuple[int, ...]
    canonical: bool

    def __len__(self) -> int:
        return len(self.labels)

    def answer(self, order: Sequence[int]) -> list[int]:
        """Ids of the answer after the prompt: the first is the identifier of `order[0]`."""
        ids = [self.first[order[0]]]
        for place in order[1:]:
            ids += [*self.between, self.later[place]]
        return [*ids, *self.tail]

    def answer_length(self, count: int) -> int:
        return 1 + (count - 1) * (len(self.between) + 1) + len(self.tail)

    def text(self, order: Sequence[int]) -> str:
        """The answer as it is written."""
        return self.separator.join(f"{self.open}{self.labels[place]}{self.close}" for place in order)


def labels_of_scheme(scheme: str, count: int) -> tuple[str, ...]:
    """A, B, … or 1, 2, …. Raises SchemeError for more passages than there are letters."""
    if scheme == "numbers":
        return tuple(str(number) for number in range(1, count + 1))
    if count > len(string.ascii_uppercase):
        raise SchemeError(f"{scheme} has {len(string.ascii_uppercase)} identifiers, and window={count} needs more")
    return tuple(string.ascii_uppercase[:count])


def choose(tokenizer: PreTrainedTokenizerBase, template: PromptTemplate, header: str, count: int) -> Identifiers:
    """The identifiers of the template's scheme, checked for `count` passages; with `auto`, of the first valid scheme.

    header: the text before the answer, from the last place on. Raises SchemeError with the identifiers that fail and the
    schemes that are valid.
    """
    if template.scheme == "auto":
        for scheme in AUTO:
            try:
                return prove(tokenizer, template, header, scheme, count)
            except SchemeError:
                continue
        raise SchemeError(f"no scheme of {', '.join(AUTO)} gives {count} identifiers of one token each")
    try:
        return prove(tokenizer, template, header, template.scheme, count)
    except SchemeError as error:
        passing = [scheme for scheme in AUTO if _passes(tokenizer, template, header, scheme, count)]
        allowed = f"these pass: {', '.join(passing)}" if passing else "none passes; lower model.window"
        raise SchemeError(
            f"identifiers.scheme={template.scheme} with window={count}: {error}; {allowed}", error.failing
        ) from error


def _passes(tokenizer: PreTrainedTokenizerBase, template: PromptTemplate, header: str, scheme: str, count: int) -> bool:
    try:
        prove(tokenizer, template, header, scheme, count)
    except SchemeError:
        return False
    return True


def prove(
    tokenizer: PreTrainedTokenizerBase, template: PromptTemplate, header: str, scheme: str, count: int
) -> Identifiers:
    """The identifiers of a scheme as ids. Raises SchemeError if one of them is not a single token."""

    scheme_of = _Scheme(
        encode=lambda text: fixed_ids(tokenizer, text),
        labels=labels_of_scheme(scheme, count),
        marks=("", "") if scheme == "bare_letters" else (template.open, template.close),
        separator=template.separator,
        forbidden={*tokenizer.all_special_ids, tokenizer.unk_token_id},
    )
    return scheme_of.from_pieces() if scheme == "pieces" else scheme_of.canonical(header, scheme)


@dataclass(frozen=True, kw_only=True)
class _Scheme:
    """Labels between marks, encoded by a tokenizer. forbidden: ids that cannot be identifiers."""

    encode: Encode
    labels: tuple[str, ...]
    marks: tuple[str, str]
    separator: str
    forbidden: set[int | None]

    def from_pieces(self) -> Identifiers:
        """Identifiers with bracket and letter as separate ids in training and scoring, which is always valid."""
        labels, (begin, end), encode = self.labels, self.marks, self.encode
        encoded = [encode(label) for label in labels]
        pairs = zip(labels, encoded, strict=True)
        failing = [label for label, ids in pairs if len(ids) != 1 or ids[0] in self.forbidden]
        ids = tuple(found[0] for found in encoded if found)
        if failing or len(set(ids)) < len(labels):
            raise SchemeError(f"{', '.join(failing) or 'some'} are not single tokens of their own", failing)
        between, tail = encode(end + self.separator + begin), encode(end)
        return Identifiers("pieces", labels, begin, end, self.separator, encode(begin), ids, between, ids, tail, False)

    def canonical(self, header: str, scheme: str) -> Identifiers:
        """Identifiers as the tokenizer encodes them after the header, checked in whole answers."""
        labels, (begin, end), encode = self.labels, self.marks, self.encode
        more = self.separator.rstrip()
        base = encode(header)
        first, place = self._single([f"{header}{begin}{label}{end}{more}" for label in labels], base)
        prefix = encode(f"{header}{begin}{labels[0]}{end}{more}")[len(base) : place]
        found = []
        for start in labels[:2]:
            context = f"{header}{begin}{start}{end}{self.separator}"
            texts = [f"{context}{begin}{label}{end}" for label in labels]
            later, second = self._single([text + more for text in texts], base)
            whole = encode(texts[0])
            found.append((whole[place + 1 : second], later, whole[second + 1 :]))
        if found[0] != found[-1]:
            raise SchemeError(f"what follows an identifier depends on it: {labels[0]} and {labels[1]}", labels[:2])
        between, later, tail = found[0]
        made = Identifiers(scheme, labels, begin, end, self.separator, prefix, first, between, later, tail, True)
        for order in (range(len(labels)), range(len(labels) - 1, -1, -1)):
            if encode(header + made.text(order)) != (*base, *prefix, *made.answer(order)):
                raise SchemeError("a whole answer is tokenised otherwise than its parts", labels)
        return made

    def _single(self, texts: Sequence[str], base: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
        """The single token in which the texts differ, for each of them, and its position.

        Raises SchemeError with the labels whose encoding has another structure.
        """
        rows = [self.encode(text) for text in texts]
        kept = [row[: len(base)] == base for row in rows]
        usual = Counter(len(row) for row, fits in zip(rows, kept, strict=True) if fits).most_common(1)
        failing = [
            label
            for label, row, fits in zip(self.labels, rows, kept, strict=True)
            if not fits or len(row) != usual[0][0]
        ]
        if failing:
            raise SchemeError(f"{', '.join(failing)} are not tokenised like the others", failing)
        places = [place for place in range(usual[0][0]) if len({row[place] for row in rows}) > 1]
        if len(places) != 1:
            raise SchemeError(f"identifiers differ in {len(places)} tokens, not in one", self.labels)
        ids = tuple(row[places[0]] for row in rows)
        failing = [
            label
            for label, token in zip(self.labels, ids, strict=True)
            if token in self.forbidden or ids.count(token) > 1
        ]
        if failing:
            raise SchemeError(f"{', '.join(failing)} are unknown, special or equal tokens", failing)
        return ids, places[0]
