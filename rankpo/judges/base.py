"""Judge: the interface of judges of a query and passages A and B, with answers for `verdicts.parse`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rankpo.types import Prompt


class JudgeStopped(RuntimeError):
    """Raised if no further call can succeed: a rejected key, a wrong address, an exhausted budget. Results are kept."""


class JudgeFailed(RuntimeError):
    """Raised for a call without an answer after all retries."""


@dataclass(frozen=True)
class Reply:
    """One answer. usage: tokens counted by the server. seconds: of the whole call. retries: before it succeeded."""

    text: str
    model: str
    usage: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    retries: int = 0


class Judge(ABC):
    """Base of judges. concurrency: concurrent calls. price: dollars per million input and output tokens, or {}."""

    name: str
    concurrency: int = 1
    price: Mapping[str, float] = {}

    @abstractmethod
    def request(self, query: Prompt, a: str, b: str) -> Mapping[str, object]:
        """Returns all inputs of the answer as JSON, the key of the cache. query: text, or turns of a conversation."""

    def request_list(self, query: Prompt, passages: Sequence[str]) -> Mapping[str, object]:
        """Returns all inputs of an answer that orders the passages, as `request`. Raises JudgeStopped if it cannot."""
        raise JudgeStopped(f"{type(self).__name__} compares two passages and orders no lists; set task.mode=pairs")

    def count_cut(self, *texts: str, lists: bool = False) -> int:
        """Returns the number of texts above the judge's maximum length. lists: of requests for lists."""
        return 0

    def unmarked(self, *, lists: bool = False) -> str | None:
        """The key of a template that does not separate texts by marks, or None. lists: of requests for lists."""
        return None

    def close(self) -> None:  # noqa: B027  (most judges have nothing to end)
        """Ends connections and threads, if the judge has any."""

    @abstractmethod
    def ask(self, request: Mapping[str, object]) -> Reply:
        """Returns the answer. Raises JudgeFailed for a call without an answer, JudgeStopped if no call can succeed."""


def words(choice: str, probability: float) -> str:
    """Returns the answer of a computed judgement, in RankPO's format. probability: of the choice, 0.5 to 1."""
    return f"Preferred: {choice}\nConfidence score: {round(100 * probability)}"
