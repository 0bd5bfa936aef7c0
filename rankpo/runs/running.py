"""RunningMetrics: means over updates and ranks, for the lines of the log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypedDict

import torch
from torch import Tensor


class Sums(TypedDict):
    """The state of `RunningMetrics` as JSON, by the names of its metrics."""

    sums: Mapping[str, float]
    counts: Mapping[str, int]
    totals: Mapping[str, float]
    updates: Mapping[str, int]


class RunningMetrics:
    """Means over one or several updates, stored as float64 sums on the device."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Resets all sums."""
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._totals: dict[str, Tensor] = {}
        self._updates: dict[str, int] = {}
        self._touched: set[str] = set()  # Sums of the current update: with several datasets, not all of them.

    def add(self, name: str, values: Tensor) -> None:
        """Adds values, [n] or []. The result is the mean over all added values on all ranks."""
        values = values.detach().double()
        # One running sum in the order of addition, so that a resumed run reproduces the last digit.
        self._sums[name] = self._sums[name] + values.sum() if name in self._sums else values.sum()
        self._counts[name] = self._counts.get(name, 0) + values.numel()

    def add_sum(self, name: str, value: Tensor) -> None:
        """Adds this rank's share [] of a value of an update. The result is the sum over ranks, averaged over updates."""
        value = value.detach().double()
        self._totals[name] = self._totals[name] + value if name in self._totals else value
        self._touched.add(name)

    def end_update(self) -> None:
        """Marks the end of an update for the sums that `add_sum` was given in it."""
        for name in self._touched:
            self._updates[name] = self._updates.get(name, 0) + 1
        self._touched.clear()

    def result(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """All means by name. reduce: sums a tensor over ranks; every rank must have added the same names."""
        names = sorted(self._sums)
        held = [*self._sums.values(), *self._totals.values()]
        device = held[0].device if held else torch.device("cpu")
        flat = [self._sums[name].to(device) for name in names]
        flat += [torch.tensor(float(self._counts[name]), dtype=torch.float64, device=device) for name in names]
        flat += [self._totals[name].to(device) for name in sorted(self._totals)]
        if not flat:
            return {}
        values = reduce(torch.stack(flat)).tolist()
        count = len(names)
        means = {name: values[i] / values[count + i] for i, name in enumerate(names) if values[count + i]}
        totals = {name: values[2 * count + i] / self._updates[name] for i, name in enumerate(sorted(self._totals))}
        return {**totals, **means}

    def state(self, reduce: Callable[[Tensor], Tensor]) -> Sums:
        """Returns the state for `restore` as JSON: the sums over all ranks since the last log line."""
        names, totals = sorted(self._sums), sorted(self._totals)
        flat = [*(float(self._sums[name]) for name in names), *(float(self._counts[name]) for name in names)]
        flat += [float(self._totals[name]) for name in totals]
        device = self._sums[names[0]].device if names else None
        values = reduce(torch.tensor(flat, dtype=torch.float64, device=device)).tolist()
        count = len(names)
        return {
            "sums": dict(zip(names, values[:count], strict=True)),
            "counts": dict(zip(names, (int(value) for value in values[count : 2 * count]), strict=True)),
            "totals": dict(zip(totals, values[2 * count :], strict=True)),
            "updates": dict(self._updates),
        }

    def restore(self, saved: Sums, share: float, device: torch.device | None = None) -> None:
        """Continues from a state. share: 1 on the rank that restores the sums, 0 on the others."""
        self._sums = {
            name: torch.tensor(value * share, dtype=torch.float64, device=device)
            for name, value in saved["sums"].items()
        }
        self._counts = {name: int(value * share) for name, value in saved["counts"].items()}
        self._totals = {
            name: torch.tensor(value * share, dtype=torch.float64, device=device)
            for name, value in saved["totals"].items()
        }
        self._updates = dict(saved["updates"])
