"""Column: numbers that are appended one by one and kept in a file, for tables of millions of examples."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np


class Column:
    """Numbers of one type. `spill` moves them from memory to a file; `whole` returns all and removes the file.

    code: of `array.array`, which also gives the type of the result, except for `dtype`.
    """

    def __init__(self, path: Path, code: str, dtype: type[np.generic] | None = None) -> None:
        self.path, self.code = path, code
        self.dtype = np.dtype(code) if dtype is None else np.dtype(dtype)
        self._values: array[Any] = array(code)
        path.touch()

    def append(self, value: float) -> None:
        self._values.append(value)

    def extend(self, values: Iterable[float]) -> None:
        self._values.extend(values)

    def spill(self) -> None:
        with self.path.open("ab") as file:
            self._values.tofile(file)
        self._values = array(self.code)

    def whole(self) -> np.ndarray:
        """All numbers, [n]."""
        self.spill()
        found = np.fromfile(self.path, dtype=self.dtype)
        self.path.unlink()
        return found
