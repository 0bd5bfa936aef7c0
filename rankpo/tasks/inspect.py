"""Inspect: the keys of task=inspect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rankpo.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class Inspect(Task):
    """Reports the content of `datasets` without training, and without the weights of a model.

    tokens: true counts lengths in tokens and finds equal texts with the tokenizer of `model`, which must be available;
    false counts words. output: a JSON file with the whole report.
    Bad records are counted and listed with their reasons, for every value of on_bad_record.
    The call returns the content of `output`.
    """

    tokens: bool = False
    output: str = "inspect.json"

    work: ClassVar[str] = "rankpo.tasks.work.inspect"

    def reads_datasets(self) -> bool:
        return True
