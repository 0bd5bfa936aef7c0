"""Prompt templates of listwise rerankers: yaml files with places for the query, the passages and their identifiers.

A template is split into fixed text and places once; user text is put between and never formatted, so that braces in
it are harmless. RankLLM's single-turn listwise files are read too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[2] / "prompts"
SCHEMES = ("auto", "letters", "numbers", "bare_letters", "pieces")
PLACES = {
    "introduction": ("query", "num"),
    "passage": ("identifier", "text"),
    "instruction": ("query", "num", "example"),
}
KEYS = ("name", "system", *PLACES, "identifiers", "answer_pattern")
IDENTIFIER_KEYS = ("scheme", "open", "close", "separator")
# RankLLM's names of the same things: key -> our key, place -> our place
FOREIGN_KEYS = {"prefix": "introduction", "body": "passage", "suffix": "instruction", "system_message": "system"}
FOREIGN_PLACES = {"rank": "identifier", "candidate": "text", "psg_ids": "example"}


@dataclass(frozen=True)
class Place:
    """Where user text or an identifier goes."""

    name: str


Parts = tuple["str | Place", ...]


@dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """What surrounds query and passages, and how identifiers look.

    introduction and instruction may hold {query} and {num}, the instruction {example} (two identifiers, the later
    first); a passage holds {identifier} and {text} once each. scheme: of `identifiers.py`. open, close: around an
    identifier; separator: between two in an answer. answer_pattern: a regular expression with one group for the
    identifier, in place of open + identifier + close, for reading what a model wrote.
    Raises ValueError naming the key of an unknown, missing or repeated place.
    """

    name: str
    introduction: str
    passage: str
    instruction: str
    system: str | None = None
    scheme: str = "auto"
    open: str = "["
    close: str = "]"
    separator: str = " > "
    answer_pattern: str | None = None

    def __post_init__(self) -> None:
        for key, allowed in PLACES.items():
            found = [part.name for part in self.parts(key) if isinstance(part, Place)]
            for name in found:
                if name not in allowed:
                    raise ValueError(f"{key}: unknown place {{{name}}}; allowed: {', '.join(allowed)}")
                if found.count(name) > 1:
                    raise ValueError(f"{key}: {{{name}}} occurs {found.count(name)} times; once is allowed")
        for name in PLACES["passage"]:
            if f"{{{name}}}" not in self.passage:
                raise ValueError(f"passage: {{{name}}} is missing in {self.passage!r}")
        if "{query}" not in self.introduction + self.instruction:
            raise ValueError("introduction and instruction: {query} is missing in both")
        if self.scheme not in SCHEMES:
            raise ValueError(f"identifiers.scheme must be one of {', '.join(SCHEMES)}, got {self.scheme!r}")
        if not self.separator.strip():
            raise ValueError(f"identifiers.separator must hold more than white space, got {self.separator!r}")
        if self.answer_pattern is not None and re.compile(self.answer_pattern).groups != 1:
            raise ValueError(f"answer_pattern must have one group, the identifier, got {self.answer_pattern!r}")

    def parts(self, key: str) -> Parts:
        """Fixed text and places of introduction, passage or instruction, in order."""
        pieces = re.split(r"\{([^{}\s]*)\}", getattr(self, key))
        return tuple(Place(piece) if index % 2 else piece for index, piece in enumerate(pieces) if piece or index % 2)

    def content(self, labels: Sequence[str], labelled: Sequence[str]) -> Parts:
        """A whole prompt over `labels` with the places `query` and `text` left open: fixed text between them joined.

        labels: identifiers of the passages; labelled: the same with open and close around them.
        """
        fixed = {"num": str(len(labels)), "example": self.separator.join(reversed(labelled[:2]))}
        parts: list[str | Place] = []
        for part in self.parts("introduction"):
            parts.append(_filled(part, fixed))
        for identifier in labelled:
            parts += [_filled(part, {"identifier": identifier}) for part in self.parts("passage")]
        for part in self.parts("instruction"):
            parts.append(_filled(part, fixed))
        return joined(parts)

    def to_json(self) -> dict[str, object]:
        """The form that `from_mapping` reads."""
        own = {key: getattr(self, key) for key in KEYS if key != "identifiers" and getattr(self, key) is not None}
        return {**own, "identifiers": {key: getattr(self, key) for key in IDENTIFIER_KEYS}}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> PromptTemplate:
        """A template from a yaml's content, ours or RankLLM's. Raises ValueError naming what does not fit."""
        if "prefix" in values:
            values = _translated(values)
        strange = sorted(set(values) - set(KEYS))
        if strange:
            raise ValueError(f"unknown key {strange[0]}; known: {', '.join(KEYS)}")
        missing = [key for key in PLACES if key not in values]
        if missing:
            raise ValueError(f"{missing[0]} is missing")
        identifiers = dict(values.get("identifiers") or {})
        strange = sorted(set(identifiers) - set(IDENTIFIER_KEYS))
        if strange:
            raise ValueError(f"unknown key identifiers.{strange[0]}; known: {', '.join(IDENTIFIER_KEYS)}")
        own = {key: value for key, value in values.items() if key != "identifiers"}
        return cls(**{"name": "prompt", **own, **identifiers})


def joined(parts: Sequence[str | Place]) -> Parts:
    """The same with neighbouring fixed texts made one, so that they are tokenised together."""
    merged: list[str | Place] = []
    for part in parts:
        if isinstance(part, str) and merged and isinstance(merged[-1], str):
            merged[-1] += part
        elif part != "":
            merged.append(part)
    return tuple(merged)


def _filled(part: str | Place, values: Mapping[str, str]) -> str | Place:
    return values.get(part.name, part) if isinstance(part, Place) else part


def _translated(values: Mapping[str, Any]) -> dict[str, Any]:
    """Our keys from RankLLM's; its body's brackets become those of the identifiers."""
    for key in ("prefix_assistant", "body_assistant"):
        if key in values:
            raise ValueError(f"{key}: prompts of several turns are not supported; use a single-turn listwise template")
    text = {ours: str(values[theirs]) for theirs, ours in FOREIGN_KEYS.items() if values.get(theirs)}
    for theirs, ours in FOREIGN_PLACES.items():
        text = {key: value.replace(f"{{{theirs}}}", f"{{{ours}}}") for key, value in text.items()}
    bracketed = "[{identifier}]" in text.get("passage", "")
    if "passage" in text:
        text["passage"] = text["passage"].replace("[{identifier}]", "{identifier}").rstrip("\n") + "\n"
    scheme = "letters" if "alphabetical" in text.get("introduction", "") else "numbers"
    marks = {"open": "[", "close": "]"} if bracketed else {"open": "", "close": ""}
    return {"name": "rank_llm", **text, "identifiers": {"scheme": scheme, **marks, "separator": " > "}}


def shipped() -> list[str]:
    """Names of the templates that come with rankpo."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_template(prompt: str) -> PromptTemplate:
    """The template of a shipped name or a yaml file. Raises ValueError with the file and the key that is wrong."""

    path = FOLDER / f"{prompt}.yaml" if prompt in shipped() else Path(prompt).expanduser()
    if not path.is_file():
        raise ValueError(f"prompt={prompt} is neither a file nor one of {', '.join(shipped())}")
    lines = path.read_text(encoding="utf-8")
    try:
        values = yaml.safe_load(lines)
        if not isinstance(values, Mapping):
            raise ValueError("not a mapping of keys")
        return PromptTemplate.from_mapping(values)
    except yaml.YAMLError as error:
        raise ValueError(f"prompt={path}: not yaml: {error}") from error
    except ValueError as error:
        key = str(error).partition(":")[0].removeprefix("unknown key ").split(" ")[0].split(".")[0]
        numbers = [number for number, line in enumerate(lines.splitlines(), 1) if line.startswith(f"{key}:")]
        raise ValueError(f"prompt={path}{f':{numbers[0]}' if numbers else ''}: {error}") from error
