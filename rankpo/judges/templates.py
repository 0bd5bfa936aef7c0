"""A judge's prompt: a template of the yaml, filled in one pass, with texts cut alike on both sides.

{mark} in a template is a hash of all texts of the call: nobody can write a text that holds its own mark, so that a line
of it shows where a text really ends. The same texts have the same mark, and a restart asks nothing twice.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from rankpo.data.text.conversations import plain_text
from rankpo.types import Prompt

FIELDS = ("query", "passage_a", "passage_b", "criteria", "mark")
CUT = " […]"
MARK_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class Template:
    """prompt: with {query}, {passage_a}, {passage_b} and, if wanted, {criteria} and {mark}; other braces stay as they are.

    max_characters: of the query and of each passage; a longer text is cut there and marked. mark_seed: changes {mark},
    and so asks anew.
    """

    prompt: str
    system: str = ""
    criteria: str = ""
    max_characters: int = 24000
    mark_seed: int = 0

    def __post_init__(self) -> None:
        for name in ("query", "passage_a", "passage_b"):
            if f"{{{name}}}" not in self.prompt:
                raise ValueError(f"prompt must hold {{{name}}}, got {self.prompt[:80]!r}")
        if self.max_characters < 1:
            raise ValueError(f"max_characters must be >= 1, got {self.max_characters}")

    def messages(self, query: Prompt, a: str, b: str) -> list[dict[str, str]]:
        """The turns of a chat. One pass over the template: braces inside the texts are harmless."""
        values = {"query": plain_text(query), "passage_a": a, "passage_b": b}
        texts = {name: self.cut(text) for name, text in values.items()}
        fields = {**texts, "criteria": self.criteria, "mark": self.mark(texts)}
        pattern = "|".join(f"{{{name}}}" for name in FIELDS)
        content = re.sub(pattern, lambda match: fields[match.group()[1:-1]], self.prompt)
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": content}]

    @property
    def is_marked(self) -> bool:
        """Whether each of the texts stands between marks."""
        return self.prompt.count("{mark}") >= 2

    def mark(self, texts: Mapping[str, str]) -> str:
        """The mark of one call: 16 hexadecimal digits that none of them holds."""
        number = 0
        while True:
            asked = json.dumps([self.mark_seed, number, *texts.values()]).encode()
            mark = hashlib.blake2b(asked, digest_size=MARK_BYTES).hexdigest()
            if not any(mark in text for text in texts.values()):
                return mark
            number += 1

    def cut(self, text: str) -> str:
        return text if len(text) <= self.max_characters else text[: self.max_characters] + CUT

    def count_cut(self, *texts: str) -> int:
        """How many of the texts are longer than the template shows."""
        return sum(len(text) > self.max_characters for text in texts)
