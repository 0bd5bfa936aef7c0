"""Template: a judge's prompt, filled in one pass, with the same maximum length for both passages.

{mark} in a template is a hash of all texts of the call. A text cannot contain its own mark, so that the mark reliably
shows the end of a text. Equal texts have the same mark, so that a restart uses the cached answers.
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
    """prompt: with {query}, {passage_a}, {passage_b} and optionally {criteria} and {mark}; other braces are kept.

    max_characters: of the query and of each passage; longer texts are cut and marked. mark_seed: changes {mark}, so
    that cached answers are not used.
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
        """Returns the turns of a chat. The template is filled in one pass, so that braces in the texts have no effect."""
        values = {"query": plain_text(query), "passage_a": a, "passage_b": b}
        texts = {name: self.cut(text) for name, text in values.items()}
        fields = {**texts, "criteria": self.criteria, "mark": self.mark(texts)}
        pattern = "|".join(f"{{{name}}}" for name in FIELDS)
        content = re.sub(pattern, lambda match: fields[match.group()[1:-1]], self.prompt)
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": content}]

    @property
    def is_marked(self) -> bool:
        """Whether each text is between marks."""
        return self.prompt.count("{mark}") >= 2

    def mark(self, texts: Mapping[str, str]) -> str:
        """Returns the mark of a call: 16 hexadecimal digits that do not occur in the texts."""
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
        """Returns the number of texts above max_characters."""
        return sum(len(text) > self.max_characters for text in texts)
