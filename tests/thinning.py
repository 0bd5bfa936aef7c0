"""Thinning of parametrised tests: the default suite runs some of the values, and `pytest -m slow` the others."""

from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def thinned(values: Iterable[str], keep: Sequence[str]) -> list[Any]:
    """The values as parameters; those that are not in `keep` are marked slow. Raises ValueError for a kept value that is
    not among them."""
    values = list(values)
    if missing := [value for value in keep if value not in values]:
        raise ValueError(f"no value of the test: {', '.join(missing)}")
    return [value if value in keep else pytest.param(value, marks=pytest.mark.slow) for value in values]
