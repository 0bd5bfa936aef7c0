"""Exceptions whose messages tell users what to change, and suggestions for mistyped names."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path

PACKAGE = Path(__file__).parent  # config/messages.py shows the messages of errors raised in this folder to users

# Messages of Python, torch, the C++ runtime and the dynamic loader for a failed memory allocation.
NO_MEMORY = re.compile(
    r"DefaultCPUAllocator|not enough memory|cannot allocate memory|can't allocate memory|unable to allocate"
    r"|bad_alloc|failed to map segment|can't start new thread|CUDA out of memory|memory allocation of \d+ bytes failed",
    re.IGNORECASE,
)


class InputError(Exception):
    """Base class of errors in the user's input: config keys, records or weights.

    The command exits with code 2 for these errors, and with code 1 for any other failure.
    """


class ConfigError(InputError, ValueError):
    """Raised with all problems of a config at once, so that users can correct them together.

    problems: one line of text for each problem. The message joins these lines.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[str]]]:
        """Pickles the list of problems, because the default would pass the joined message to the constructor.

        submitit pickles errors to send them from another machine.
        """
        return type(self), (self.problems,)


class ManyLines(InputError, ValueError):
    """Base class of errors with one line of text for each problem. Other errors are shown as a single line."""


class LoadingError(InputError, RuntimeError):
    """Raised for a model that cannot be loaded; the message names the source and the remedy."""


class StorageError(RuntimeError):
    """Raised for a file or folder that cannot be read, written or used; the message names it and the remedy."""


class OutOfMemory(RuntimeError):
    """Raised for an update that does not fit into memory; the message names the key and a value that fits."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, is a failed memory allocation."""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            return True
        if isinstance(error, RuntimeError | ImportError | SystemError) and NO_MEMORY.search(str(error)):
            return True
        error = error.__cause__
    return False


def did_you_mean(value: str, allowed: Iterable[str]) -> str:
    """Returns `; did you mean NAME?` with the most similar allowed name, or "" if no name is similar."""
    near = get_close_matches(value, sorted(allowed), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def unknown(name: str, value: str, allowed: Iterable[str], hint: str = "") -> str:
    """Returns the message for an unknown value of `name`, with a hint and all allowed values.

    hint: text after the value. By default, the message suggests the most similar allowed name.
    """
    choices = sorted(allowed)
    return f"{name} has no {value!r}{hint or did_you_mean(value, choices)} (allowed: {', '.join(choices)})"
