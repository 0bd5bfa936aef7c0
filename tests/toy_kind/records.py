"""A dataset and a trainer of a user, named by yamls of the user."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rankpo.trainers.paired_preference import PairedPreferenceTrainer
from rankpo.types import Example


@dataclass(frozen=True, kw_only=True)
class Colours:
    """Pairs in which the colour of the query is preferred."""

    name: str
    count: int

    def fingerprint(self) -> str:
        return f"colours-{self.count}"

    def examples(self) -> Iterator[Example]:
        for number in range(self.count):
            colour, other = ("red", "blue") if number % 2 else ("blue", "red")
            texts = (f"a {colour} car", f"a {other} car")
            yield Example(f"{colour} {number}", texts, (1.0, 0.0), str(number))


class CountingTrainer(PairedPreferenceTrainer):
    """Counts its updates on the class."""

    updates = 0

    def train_step(self, update: Any) -> None:
        super().train_step(update)
        CountingTrainer.updates += 1
