"""Small generated dataset of questions with a right and a wrong answer, to try chat configs without a file."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from rankpo.data.shape import Declares
from rankpo.types import Example, Prompt

VERSION = 1  # Raise this number with every change of the generated data.
COLOURS = {"the sky": "Blue", "grass": "Green", "snow": "White", "blood": "Red", "coal": "Black", "a lemon": "Yellow"}
SYSTEM = ("system", "Answer in one word.")


@dataclass(kw_only=True)
class ToyChat(Declares):
    """Conversations about sums and colours, some after an earlier exchange. The chosen answer is the right one.

    num_examples: the number of examples. As in real preferences, some are repeated with another wrong answer.
    """

    name: str
    num_examples: int = 48
    seed: int = 7
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.num_examples < 1:
            raise ValueError(f"num_examples must be >= 1, got {self.num_examples}")

    def fingerprint(self) -> str:
        return f"toy_chat-{VERSION}-{self.num_examples}-{self.seed}"

    def examples(self) -> Iterator[Example]:
        rng = random.Random(self.seed)
        for number in range(self.num_examples):
            question, right, wrong = _sum(rng) if number % 2 else _colour(rng)
            turns: list[tuple[str, str]] = [SYSTEM] if number % 3 == 0 else []
            if number % 4 == 0:
                earlier, answer, _ = _colour(rng)
                turns += [("user", earlier), ("assistant", answer)]
            query: Prompt = (*turns, ("user", question))
            yield Example(query=query, candidates=(right, wrong), relevance=(1.0, 0.0), id=f"{self.name}:{number}")


def _sum(rng: random.Random) -> tuple[str, str, str]:
    left, right = rng.randint(1, 9), rng.randint(1, 9)
    wrong = left + right + rng.choice([-1, 1, 2, 10])
    return f"What is {left} + {right}?", _worded(rng, str(left + right)), _worded(rng, str(wrong))


def _colour(rng: random.Random) -> tuple[str, str, str]:
    thing = rng.choice(sorted(COLOURS))
    wrong = rng.choice(sorted(set(COLOURS.values()) - {COLOURS[thing]}))
    return f"What colour is {thing}?", _worded(rng, COLOURS[thing]), _worded(rng, wrong)


def _worded(rng: random.Random, answer: str) -> str:
    """The answer in a short or long form, drawn at random, so that the length does not reveal the right answer."""
    return rng.choice(["{}.", "I would say: {}.", "That is {}, of course."]).format(answer)
