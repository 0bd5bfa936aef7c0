"""The kinds of models by name, each in a folder of its name."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from rankpo.errors import unknown
from rankpo.models.kind import ModelKind


def kind_names() -> list[str]:
    """The folders beside this module that hold a kind."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/config.py"))


def kind_class(name: str) -> type[ModelKind]:
    """The `ModelKind` of a name. Raises ValueError for an unknown name."""
    if name not in kind_names():
        raise ValueError(unknown("kind", name, kind_names()))
    module = import_module(f"rankpo.models.{name}.config")
    found = [item for item in vars(module).values() if isinstance(item, type) and item.__module__ == module.__name__]
    (kind,) = [item for item in found if issubclass(item, ModelKind)]
    return kind
