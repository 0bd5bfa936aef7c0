"""Templates: the prompts of a judge, filled in one pass, with the same maximum length for all passages.

{mark} in a template is a hash of all texts of the call. A text cannot contain its own mark, so that the mark reliably
shows the end of a text. Equal texts have the same mark, so that a restart uses the cached answers.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rankpo.data.text.conversations import plain_text
from rankpo.judges.base import JudgeStopped
from rankpo.judges.orders import SEPARATOR, letters
from rankpo.types import Prompt

FIELDS = ("query", "passage_a", "passage_b", "criteria", "mark")
LIST_FIELDS = ("query", "passages", "num", "example", "criteria", "mark")
PASSAGE_FIELDS = ("label", "text", "mark")
CUT = " […]"
MARK_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class Words:
    """The parts that all templates have. prompt: with the fields of the template; other braces are kept.

    max_characters: of the query and of each passage; longer texts are cut and marked. mark_seed: changes {mark}, so
    that cached answers are not used.
    """

    prompt: str
    system: str = ""
    criteria: str = ""
    max_characters: int = 24000
    mark_seed: int = 0

    def __post_init__(self) -> None:
        if self.max_characters < 1:
            raise ValueError(f"max_characters must be >= 1, got {self.max_characters}")

    def turns(self, content: str) -> list[dict[str, str]]:
        """Returns the turns of a chat."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": content}]

    def mark(self, texts: Sequence[str]) -> str:
        """Returns the mark of a call: 16 hexadecimal digits that do not occur in the texts."""
        number = 0
        while True:
            asked = json.dumps([self.mark_seed, number, *texts]).encode()
            mark = hashlib.blake2b(asked, digest_size=MARK_BYTES).hexdigest()
            if not any(mark in text for text in texts):
                return mark
            number += 1

    def cut(self, text: str) -> str:
        return text if len(text) <= self.max_characters else text[: self.max_characters] + CUT

    def count_cut(self, *texts: str) -> int:
        """Returns the number of texts above max_characters."""
        return sum(len(text) > self.max_characters for text in texts)


@dataclass(frozen=True, kw_only=True)
class Template(Words):
    """A prompt for two passages, with {query}, {passage_a}, {passage_b} and optionally {criteria} and {mark}."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.prompt, "prompt", ("query", "passage_a", "passage_b"))

    def messages(self, query: Prompt, a: str, b: str) -> list[dict[str, str]]:
        """Returns the turns of a chat. The template is filled in one pass, so that braces in the texts have no effect."""
        values = {"query": plain_text(query), "passage_a": a, "passage_b": b}
        texts = {name: self.cut(text) for name, text in values.items()}
        fields = {**texts, "criteria": self.criteria, "mark": self.mark(list(texts.values()))}
        return self.turns(_filled(self.prompt, FIELDS, fields))

    @property
    def is_marked(self) -> bool:
        """Whether each text is between marks."""
        return self.prompt.count("{mark}") >= 2


@dataclass(frozen=True, kw_only=True)
class ListTemplate(Words):
    """A prompt for a list, with {query}, {passages} and optionally {num}, {example}, {criteria} and {mark}.

    passage: the words of one passage with {label} and {text}, and optionally {mark}; {passages} is all of them, one
    after another. {example} is an answer in the right form.
    """

    passage: str

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.prompt, "prompt", ("query", "passages"))
        _require(self.passage, "passage", ("label", "text"))

    def messages(self, query: Prompt, passages: Sequence[str]) -> list[dict[str, str]]:
        """Returns the turns of a chat. No text is searched for fields, so that braces in the texts have no effect."""
        asked, shown, labels = (
            self.cut(plain_text(query)),
            [self.cut(text) for text in passages],
            letters(len(passages)),
        )
        mark = self.mark([asked, *shown])
        parts = [
            _filled(self.passage, PASSAGE_FIELDS, {"label": label, "text": text, "mark": mark})
            for label, text in zip(labels, shown, strict=True)
        ]
        fields = {
            "query": asked,
            "passages": "".join(parts),
            "num": str(len(shown)),
            "example": SEPARATOR.join(reversed(labels)),
            "criteria": self.criteria,
            "mark": mark,
        }
        return self.turns(_filled(self.prompt, LIST_FIELDS, fields))

    @property
    def is_marked(self) -> bool:
        """Whether each text is between marks."""
        return self.prompt.count("{mark}") >= 2 and self.passage.count("{mark}") >= 2


def _require(words: str, key: str, names: Sequence[str]) -> None:
    """Raises ValueError if a field is missing."""
    for name in names:
        if f"{{{name}}}" not in words:
            raise ValueError(f"{key} must hold {{{name}}}, got {words[:80]!r}")


def _filled(words: str, names: Sequence[str], values: Mapping[str, str]) -> str:
    """The words with the values of the named fields, filled in one pass."""
    pattern = "|".join(f"{{{name}}}" for name in names)
    return re.sub(pattern, lambda match: values[match.group()[1:-1]], words)


def for_lists(template: ListTemplate | None) -> ListTemplate:
    """The template of a judge for lists. Raises JudgeStopped without one."""
    if template is None:
        raise JudgeStopped(
            "judge.list_template is not set, and task.mode=lists needs it; see judge/list_template=passages"
        )
    return template


def unmarked(template: Template, list_template: ListTemplate | None, lists: bool) -> str | None:
    """The key of the template in use that does not separate texts by marks, or None."""
    marked = for_lists(list_template).is_marked if lists else template.is_marked
    return None if marked else f"judge.{'list_template' if lists else 'template'}.prompt"
