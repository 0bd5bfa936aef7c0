"""Type check of the values of a config against the annotations of constructors.

Without it, `trainer.dropout=no` would be the string 'no', which is truthy, and `loss.beta=abc` would end in a traceback.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping

SCALARS = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "a text", "None": "null"}
PLURAL = {"int": "whole numbers", "float": "numbers", "str": "texts"}
LISTS = ("Sequence", "collections.abc.Sequence", "tuple", "list")
MAPPINGS = ("Mapping", "collections.abc.Mapping", "dict")
NEVER_OF_YAML = ("Tensor", "torch.Tensor")  # Torch's optimizers declare float | Tensor.


def type_problems(target: Callable[..., object], arguments: Mapping[str, object], key: str) -> list[str]:
    """One line for each argument of `target` whose value has a type that its annotation does not allow."""
    parameters = inspect.signature(target).parameters
    found = [
        type_problem(parameters[name].annotation, value, f"{key}.{name}")
        for name, value in arguments.items()
        if name in parameters and parameters[name].annotation is not inspect.Parameter.empty
    ]
    return [problem for problem in found if problem is not None]


def type_problem(annotation: object, value: object, key: str) -> str | None:
    """The problem with the type of a key's value, or None.

    The types of YAML are checked: booleans, numbers, strings, lists, mappings and null. An annotation with any other
    type, such as a class, accepts every value. NaN is not accepted as a number.
    """
    written = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    parts = [part for part in _split(written, "|") if part not in NEVER_OF_YAML]
    if any(_fits(value, part) for part in parts):
        return None
    hint = ""
    if isinstance(value, int) and _is_long(value):
        hint = ", which has more than 64 bits"
    elif "str" in parts and isinstance(value, bool | int | float):
        hint = f"; add quotes: \"{key}='{value}'\""
    elif isinstance(value, str) and any(_head(part) in LISTS for part in parts):
        hint = f"; add brackets: {key}=[{value}]"
    return f"{key} must be {' or '.join(_in_words(part) for part in parts)}, got {value!r}{hint}"


def _is_long(value: int) -> bool:
    """Whether an integer has more than 64 bits, which torch and NumPy cannot represent."""
    return not -(1 << 63) <= value < 1 << 63


def _fits(value: object, part: str) -> bool:
    """Whether a value has a type, given in Python's notation. True for every type that YAML does not have."""
    if part == "None":
        return value is None
    if part == "bool":
        return isinstance(value, bool)
    if part == "int":
        return isinstance(value, int) and not isinstance(value, bool) and not _is_long(value)
    if part == "float":
        return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
    if part == "str":
        return isinstance(value, str)
    inner = _split(_inside(part), ",")
    if _head(part) in LISTS:
        kinds = [kind for kind in inner if kind != "..."]
        return isinstance(value, list | tuple) and all(any(_any_fits(item, kind) for kind in kinds) for item in value)
    if _head(part) in MAPPINGS:
        return isinstance(value, Mapping) and all(_any_fits(item, inner[-1]) for item in value.values())
    return True


def _in_words(part: str) -> str:
    if _head(part) in LISTS:
        items = PLURAL.get(_split(_inside(part), ",")[0])
        return f"a list of {items}" if items else "a list"
    return SCALARS.get(part, "a mapping")


def _any_fits(value: object, annotation: str) -> bool:
    return any(_fits(value, part) for part in _split(annotation, "|") if part not in NEVER_OF_YAML)


def _inside(part: str) -> str:
    """The content of the brackets of a type."""
    return part.partition("[")[2].removesuffix("]")


def _head(part: str) -> str:
    return part.partition("[")[0]


def _split(annotation: str, separator: str) -> list[str]:
    """The parts of an annotation between separators outside brackets."""
    parts, depth = [""], 0
    for letter in annotation:
        depth += (letter == "[") - (letter == "]")
        if letter == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]
