"""Packages whose classes a `_target_` can name: rankpo, some libraries, and the packages that the user declares.

A config from another person must not run that person's code. Therefore users declare their packages outside of configs:

- in the environment, `RANKPO_PACKAGES=my_package,another`;
- on the command line, `packages=[my_package]`; the same key in a yaml or in a saved run raises an error;
- in an installed distribution, as an entry point: `[project.entry-points."rankpo.packages"]` with
  `my_package = "my_package"`.

The package must be importable, so it must be installed or on PYTHONPATH.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from rankpo.errors import ConfigError

OURS = ("rankpo", "torch.optim", "transformers.optimization")
VARIABLE = "RANKPO_PACKAGES"
ENTRY_POINTS = "rankpo.packages"
NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")

_declared: set[str] = set()  # Packages from the command line of this process.
_given: dict[str, type] = {}  # Classes that a Python caller has passed, by dotted name.


def declare(packages: Any, overrides: Sequence[str]) -> None:
    """Permits the packages of the key `packages` for this process. overrides: the command line.

    Raises ConfigError for invalid package names, and for a list that is not on the command line.
    """
    if not packages:
        return
    names = packages if isinstance(packages, list) else [packages]
    wrong = [name for name in names if not isinstance(name, str) or not NAME.fullmatch(name)]
    if wrong:
        raise ConfigError([f"packages={wrong[0]!r} is not the name of a Python package, such as my_package"])
    if not any(item.lstrip("+").startswith("packages=") for item in overrides):
        raise ConfigError(
            [
                f"packages={','.join(names)} is set in a yaml, which must not permit code; write packages="
                f"[{','.join(names)}] on the command line, or set {VARIABLE}={','.join(names)}"
            ]
        )
    _declared.update(names)


def give(found: type) -> str:
    """Permits a class that a Python caller passes, such as one of a notebook. Returns its `_target_`."""
    target = f"{found.__module__}.{found.__qualname__}"
    _given[target] = found
    return target


def given(target: object) -> type | None:
    """The class that a Python caller has passed with this name, or None."""
    return _given.get(target) if isinstance(target, str) else None


def permit(target: object) -> None:
    """Raises ValueError for a `_target_` outside the permitted packages. No module is imported."""
    if not isinstance(target, str) or not permits(target):
        raise ValueError(
            f"_target_={target} is not allowed; it must be in {', '.join((*OURS, *own_packages()))}, or in one of your "
            f"packages that you declare with packages=[…] on the command line or {VARIABLE}"
        )


def permits(target: str) -> bool:
    """Whether a dotted name is in a permitted package."""
    return _within(target, OURS) or _within(target, own_packages())


def own_packages() -> list[str]:
    """The packages that the user has declared."""
    from_environment = [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]
    return sorted({*_declared, *from_environment, *_installed()})


def _within(target: str, packages: Iterable[str]) -> bool:
    return any(target.startswith(f"{package}.") for package in packages)


@cache
def _installed() -> tuple[str, ...]:
    """The packages that installed distributions declare."""

    return tuple(point.value for point in entry_points(group=ENTRY_POINTS))
