"""Registry of model kinds by name; each kind has a folder of its name."""

from __future__ import annotations

from importlib import import_module
from inspect import isabstract
from pathlib import Path

from rankpo.config import packages
from rankpo.errors import unknown
from rankpo.models.kind import ModelKind


def kind_names() -> list[str]:
    """Returns the names of the folders next to this module that define a kind."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/config.py"))


def kind_class(name: str, target: str | None = None) -> type[ModelKind]:
    """Returns the `ModelKind` with this name.

    target: the class path in a saved folder, for a kind of another package. Raises ValueError for an unknown name, and
    for a class of a package that the user has not permitted.
    """
    if name not in kind_names():
        if target is not None:
            return _class_of_a_user(name, target)
        raise ValueError(unknown("kind", name, kind_names()))
    module = import_module(f"rankpo.models.{name}.config")
    found = [item for item in vars(module).values() if isinstance(item, type) and item.__module__ == module.__name__]
    (kind,) = [item for item in found if issubclass(item, ModelKind) and not isabstract(item)]
    return kind


def _class_of_a_user(name: str, target: str) -> type[ModelKind]:
    module, _, leaf = target.rpartition(".")
    if not packages.permits(target):
        raise ValueError(
            f"kind {name!r} is the class {target}, whose package is not permitted; if you trust its code, set "
            f"{packages.VARIABLE}={module.partition('.')[0]}"
        )
    found = vars(import_module(module)).get(leaf)
    if not (isinstance(found, type) and issubclass(found, ModelKind)):
        raise ValueError(f"kind {name!r}: {target} is not a ModelKind")
    return found
