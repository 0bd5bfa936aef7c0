"""Mixing: settings for drawing updates from several datasets."""

from __future__ import annotations

from dataclasses import dataclass, replace

ORDERS = ("homogeneous", "proportional", "round_robin", "temperature")  # Each update draws from one dataset.
# Each update draws from all datasets; with auto, only if their keys and prompts do not differ.
TOGETHER = ("auto", "mixed")


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """The settings of mixing. `mixed` draws each update from all datasets; the other values draw it from one dataset.

    homogeneous: an epoch has every update of every dataset once, in random order.
    proportional: an epoch has the same updates, with those of each dataset evenly spread.
    round_robin: datasets alternate.
    temperature: a dataset's share of the updates is proportional to its size to the power of mixing_temperature; with 1,
    to its size, and with 0, all datasets have equal shares.
    auto: homogeneous if losses, prompts or negatives of datasets differ, else mixed.
    An epoch of round_robin and temperature has as many updates as the data (round_robin: or up to one round more). Small
    datasets are repeated in it, and large ones continue in the next epoch.
    """

    mixing: str = "auto"
    mixing_temperature: float = 0.5

    def __post_init__(self) -> None:
        if self.mixing not in (*TOGETHER, *ORDERS):
            raise ValueError(f"mixing must be one of {', '.join((*TOGETHER, *ORDERS))}, got {self.mixing!r}")
        if not 0 <= self.mixing_temperature <= 1:
            raise ValueError(f"mixing_temperature must be in [0, 1], got {self.mixing_temperature:g}")

    def settled(self, apart: bool) -> Mixing:
        """The settings with `auto` replaced. apart: whether keys, prompts or files of datasets require homogeneous."""
        return replace(self, mixing="homogeneous" if apart else "mixed") if self.mixing == "auto" else self
