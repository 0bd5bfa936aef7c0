"""Judge: the interface of judges of a query and passages A and B, with answers for `verdicts.parse`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from rankpo.types import Prompt


class JudgeStopped(RuntimeError):
    """No further answer can be had: a refused key, a wrong address, a budget that is used up. What is done is kept."""


class JudgeFailed(RuntimeError):
    """One call gave no answer after all its retries."""


@dataclass(frozen=True)
class Reply:
    """One answer. usage: tokens as the server counts them; seconds: of the whole call; retries: before it succeeded."""

    text: str
    model: str
    usage: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    retries: int = 0


class Judge(ABC):
    """concurrency: calls that may run side by side. price: dollars per million input and output tokens, or {}."""

    name: str
    concurrency: int = 1
    price: Mapping[str, float] = {}

    @abstractmethod
    def request(self, query: Prompt, a: str, b: str) -> Mapping[str, object]:
        """All that the answer depends on, as JSON: what the cache is keyed by. query: text, or a conversation's turns."""

    def count_cut(self, *texts: str) -> int:
        """How many of the texts are longer than the judge is shown."""
        return 0

    def unmarked(self) -> str | None:
        """The key of a template that does not separate texts by marks, or None."""
        return None

    def close(self) -> None:  # noqa: B027  (most judges have nothing to end)
        """Ends connections and threads, if the judge has any."""

    @abstractmethod
    def ask(self, request: Mapping[str, object]) -> Reply:
        """Raises JudgeFailed for a call without an answer, JudgeStopped where no call can succeed."""


def words(choice: str, probability: float) -> str:
    """What a judge that computes says: the form of RankPO's own responses. probability: of the choice, 0.5 to 1."""
    return f"Preferred: {choice}\nConfidence score: {round(100 * probability)}"
