"""Inspect: the keys of task=inspect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rankpo.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class Inspect(Task):
    """Reads `datasets` and says what they are; trains nothing and needs no model.

    tokens: lengths and equal texts by the tokenizer of `model`, which must be at hand; else by words. output: a JSON
    file of everything that is said. Bad records are counted and listed with their reasons, whatever on_bad_record is.
    The call returns the content of `output`.
    """

    tokens: bool = False
    output: str = "inspect.json"

    work: ClassVar[str] = "rankpo.tasks.work.inspect"

    def reads_datasets(self) -> bool:
        return True
