"""Generated lists that a very small model can learn to rank. Each passage holds a digit, and larger ones are better."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import xxhash

from rankpo.data.shape import Declares
from rankpo.types import Example

VERSION = 1  # Raise this number with every change of the generated data.


@dataclass(kw_only=True)
class ToyLists(Declares):
    """Lists of distinct digits in random order. The relevance is digit / 9, and the largest digit is relevant.

    num_examples: the number of lists. num_passages: digits per list. part: train or test.
    """

    name: str
    part: str = "train"
    num_examples: int = 256
    num_passages: int = 4
    seed: int = 7
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.part not in ("train", "test"):
            raise ValueError(f"part must be train or test, got {self.part!r}")
        if self.num_examples < 1:
            raise ValueError(f"num_examples must be >= 1, got {self.num_examples}")
        if not 2 <= self.num_passages <= 10:
            raise ValueError(f"num_passages must be in 2 to 10, got {self.num_passages}")

    def fingerprint(self) -> str:
        settings = [VERSION, self.part, self.num_examples, self.num_passages, self.seed]
        return xxhash.xxh3_128_hexdigest(str(settings).encode())

    def examples(self) -> Iterator[Example]:
        rng = random.Random(f"{self.seed}/{self.part}")
        for number in range(self.num_examples):
            digits = rng.sample(range(10), self.num_passages)
            yield Example(
                query="largest",
                candidates=tuple(str(digit) for digit in digits),
                relevance=tuple(digit / 9 for digit in digits),
                relevant=tuple(digit == max(digits) for digit in digits),
                id=f"{self.name}:{number}",
            )
