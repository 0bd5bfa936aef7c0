"""Errors that name what to change, and the nearest allowed name for a mistyped one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path

PACKAGE = Path(__file__).parent  # errors raised by code below this folder carry messages for users


class InputError(Exception):
    """Something that the user gave: keys, records or weights. The exit code is 2; that of a run that failed is 1."""


class ConfigError(InputError, ValueError):
    """All problems of a config, one line each.

    problems: the lines. The message joins them.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[str]]]:
        """Rebuilds the error from its problems; submitit pickles it on another machine."""
        return type(self), (self.problems,)


class ManyLines(InputError, ValueError):
    """An error whose message has a line for each problem; each is shown on a line of its own."""


class LoadingError(InputError, RuntimeError):
    """Raised for a model that cannot be loaded; the message names the source and the remedy."""


class StorageError(RuntimeError):
    """A file or folder that cannot be read, written or used; the message names it and what to do."""


def did_you_mean(value: str, allowed: Iterable[str]) -> str:
    """`; did you mean NAME?` for the nearest allowed name, or an empty text where none is near."""
    near = get_close_matches(value, sorted(allowed), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def unknown(name: str, value: str, allowed: Iterable[str], hint: str = "") -> str:
    """The message for a value that `name` does not have, with a hint and all allowed values.

    hint: replaces the nearest allowed name.
    """
    choices = sorted(allowed)
    return f"{name} has no {value!r}{hint or did_you_mean(value, choices)} (allowed: {', '.join(choices)})"
