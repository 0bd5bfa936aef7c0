"""Construction of objects from config nodes with a `_target_`. No other module calls constructors by name.

This module loads no weights and no data. Every error is a ConfigError that names the key.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from rankpo.config.messages import unknown
from rankpo.config.moved import current
from rankpo.config.packages import given, permit, permits
from rankpo.config.value_types import type_problems
from rankpo.errors import ConfigError, is_out_of_memory


@dataclass(frozen=True, kw_only=True)
class Maker:
    """A class and its keyword arguments, for a constructor call once its other arguments exist."""

    key: str
    target: str
    arguments: Mapping[str, object]

    def load(self) -> Any:
        return locate(self.target)

    def make(self, **more: Any) -> Any:
        """Returns the object. Raises ConfigError, with the key, for a value that the class rejects."""
        try:
            return self.load()(**self.arguments, **more)
        except ValueError as error:
            raise ConfigError([_prefixed(self.key, str(error), self.arguments)]) from error


def locate(target: Any) -> object:
    """The class of a `_target_`. Raises ValueError if it does not exist or is outside the permitted packages.

    Functions, and names that a permitted module imports from another package, are not permitted either.
    """
    if (handed := given(target)) is not None:
        return handed
    target = current(target) if isinstance(target, str) else target  # `permit` rejects other types.
    permit(target)
    module, _, name = target.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        if is_out_of_memory(error):
            raise MemoryError(str(error)) from error
        raise ValueError(f"_target_={target} does not exist: {error}") from error
    if not inspect.isclass(found) or not permits(f"{found.__module__}."):
        raise ValueError(f"_target_={target} is not allowed; it must be a class of a permitted package")
    return found


def build(node: object, key: str) -> Any:
    """The object of a node with `_target_`; its children are built first. Raises ConfigError with `key`."""
    if isinstance(node, list):
        return tuple(build(item, f"{key}[{index}]") for index, item in enumerate(node))
    if not isinstance(node, Mapping):
        return node
    children = {name: build(value, f"{key}.{name}") for name, value in node.items() if name != "_target_"}
    if "_target_" not in node:
        return children
    try:
        target = locate(node["_target_"])
    except ValueError as error:
        raise ConfigError([f"{key}.{error}"]) from error
    return construct(target, children, key)


def construct(target: Any, arguments: Mapping[str, object], key: str) -> object:
    """Returns target(**arguments). Raises ConfigError, with the keys, for unknown and missing keys and rejected values."""
    signature(target, arguments, key)
    try:
        return target(**arguments)
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError([_prefixed(key, str(error), arguments)]) from error


def maker(node: Mapping[str, Any], key: str) -> Maker:
    """A Maker of a node. Raises ConfigError for keys that the class does not have."""
    arguments = {name: build(value, f"{key}.{name}") for name, value in node.items() if name != "_target_"}
    try:
        target = locate(node["_target_"])
    except ValueError as error:
        raise ConfigError([f"{key}.{error}"]) from error
    signature(target, arguments, key, complete=False)
    return Maker(key=key, target=node["_target_"], arguments=arguments)


def signature(target: Any, arguments: Mapping[str, object], key: str, complete: bool = True) -> None:
    """Raises ConfigError for unknown keys and for values whose type differs from the annotation of `target`.

    complete: whether missing keys raise too.
    """
    parameters = inspect.signature(target).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    problems = [
        unknown(f"{key}.{name}: {target.__name__}", name, parameters) for name in arguments if name not in parameters
    ]
    needed = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    if complete:
        problems += [f"{key}.{name} is not set; add {key}.{name}=…" for name in needed if name not in arguments]
    problems += type_problems(target, arguments, key)
    if problems:
        raise ConfigError(problems)


def _prefixed(key: str, message: str, names: Iterable[str]) -> str:
    """The message with the group's key as prefix, unless it already has it. names: the names of the group's keys."""
    if message.startswith((f"{key}.", f"{key}:", f"{key} ", "datasets.")):
        return message
    first = re.split(r"[^\w]", message, maxsplit=1)[0]
    return f"{key}.{message}" if first in names else f"{key}: {message}"
