"""Prompts for task=sample, from datasets or from a file without completions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankpo.data.readers import files
from rankpo.data.readers.chat_turns import needed, turns
from rankpo.data.readers.fields import BadRecord
from rankpo.types import Prompt

ID_KEYS = ("prompt_id", "id")


@dataclass(frozen=True)
class Asked:
    """A prompt with its id. dataset: the name of its dataset, the value in its record, or the name of its file."""

    id: str
    prompt: Prompt
    dataset: str


def of_datasets(datasets: Sequence[Any]) -> Iterator[Asked]:
    """The prompts of the datasets' examples, in their order."""
    for dataset in datasets:
        for example in dataset.examples():
            yield Asked(example.id, example.query, dataset.name)


def of_file(path: str) -> Iterator[Asked]:
    """Records {"prompt": text or turns} or {"instruction": text}, which is a user's turn.

    Raises ValueError, with the line, for a record without a prompt.
    """
    for file in files.find(path, "prompts"):
        for place, record in files.records(file):
            try:
                yield _asked(record, place, file)
            except BadRecord as error:
                raise ValueError(f"task.prompts: {place}: {error}") from error


def _asked(record: object, place: str, file: Path) -> Asked:
    if not isinstance(record, Mapping):
        raise BadRecord(str(record))
    prompt: Prompt
    if record.get("instruction") is not None:
        prompt = turns(record["instruction"], "instruction")
    else:
        given = needed(record, "prompt")
        prompt = given if isinstance(given, str) else turns(given, "prompt")
    name = next((record[key] for key in ID_KEYS if record.get(key) is not None), place)
    return Asked(str(name), prompt, str(record.get("dataset") or file.name))


def distinct(asked: Iterable[Asked]) -> list[Asked]:
    """Each prompt once, with its first id. Raises ValueError for an id with two different prompts."""
    by_prompt: dict[Prompt, Asked] = {}
    by_id: dict[str, Prompt] = {}
    for item in asked:
        if by_id.setdefault(item.id, item.prompt) != item.prompt:
            raise ValueError(f"the id {item.id!r} has two prompts, the second in {item.dataset}; make the ids unique")
        by_prompt.setdefault(item.prompt, item)
    return list(by_prompt.values())
