"""Mixing: the settings of how updates are drawn from several datasets."""

from __future__ import annotations

from dataclasses import dataclass, replace

ORDERS = ("homogeneous", "proportional", "round_robin", "temperature")  # One dataset an update.
TOGETHER = ("auto", "mixed")  # All datasets in one update; auto: unless their keys or prompts differ.


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """mixing: `mixed` draws each update from all datasets together; the others draw it from one dataset.

    homogeneous: an epoch has every update of every dataset once, in random order. proportional: the same updates, those
    of each dataset evenly spread over the epoch. round_robin: datasets take turns. temperature: a dataset's share of the
    updates is proportional to its size to the power of mixing_temperature: 1 is its size, 0 gives all datasets equal
    shares. auto: homogeneous once losses, prompts or negatives of datasets differ, else mixed.
    An epoch of round_robin and temperature has as many updates as the data (round_robin: or up to one round more): small
    datasets are repeated in it, and large ones go on in the next one.
    """

    mixing: str = "auto"
    mixing_temperature: float = 0.5

    def __post_init__(self) -> None:
        if self.mixing not in (*TOGETHER, *ORDERS):
            raise ValueError(f"mixing must be one of {', '.join((*TOGETHER, *ORDERS))}, got {self.mixing!r}")
        if not 0 <= self.mixing_temperature <= 1:
            raise ValueError(f"mixing_temperature must be in [0, 1], got {self.mixing_temperature:g}")

    def settled(self, apart: bool) -> Mixing:
        """The settings without `auto`. apart: whether datasets have keys, prompts or files that keep them apart."""
        return replace(self, mixing="homogeneous" if apart else "mixed") if self.mixing == "auto" else self
