"""A judge's prompt: a template of the yaml, filled in one pass, with texts cut alike on both sides."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rankpo.data.text.conversations import plain_text
from rankpo.types import Prompt

FIELDS = ("query", "passage_a", "passage_b", "criteria")
CUT = " […]"


@dataclass(frozen=True, kw_only=True)
class Template:
    """prompt: with {query}, {passage_a}, {passage_b} and, if wanted, {criteria}; other braces stay as they are.

    max_characters: of the query and of each passage; a longer text is cut there and marked.
    """

    prompt: str
    system: str = ""
    criteria: str = ""
    max_characters: int = 24000

    def __post_init__(self) -> None:
        for name in ("query", "passage_a", "passage_b"):
            if f"{{{name}}}" not in self.prompt:
                raise ValueError(f"prompt must hold {{{name}}}, got {self.prompt[:80]!r}")
        if self.max_characters < 1:
            raise ValueError(f"max_characters must be >= 1, got {self.max_characters}")

    def messages(self, query: Prompt, a: str, b: str) -> list[dict[str, str]]:
        """The turns of a chat. One pass over the template: braces inside the texts are harmless."""
        values = {"query": plain_text(query), "passage_a": a, "passage_b": b}
        values = {name: self.cut(text) for name, text in values.items()} | {"criteria": self.criteria}
        pattern = "|".join(f"{{{name}}}" for name in FIELDS)
        content = re.sub(pattern, lambda match: values[match.group()[1:-1]], self.prompt)
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": content}]

    def cut(self, text: str) -> str:
        return text if len(text) <= self.max_characters else text[: self.max_characters] + CUT

    def count_cut(self, *texts: str) -> int:
        """How many of the texts are longer than the template shows."""
        return sum(len(text) > self.max_characters for text in texts)
