"""Model judge: prefers the passage with the higher score of a saved model; its scores can be training data.

For lists, the model can also be a listwise reranker, which ranks them without scores of single passages.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rankpo.data.text.conversations import plain_text
from rankpo.judges.base import Judge, JudgeStopped, Reply, words
from rankpo.judges.orders import order_words
from rankpo.models.ranked import OrdersLists
from rankpo.types import Prompt

if TYPE_CHECKING:
    from rankpo.models.base import RankingModel


@dataclass(kw_only=True)
class ScoresJudge(Judge):
    """path: a saved reranker, reward model or bi-encoder; a listwise reranker orders lists only. temperature: divides score gaps before the sigmoid that
    gives the confidence: 1 for logits, about .05 for cosines. device: None for a GPU where there is one.
    """

    path: str
    temperature: float = 1.0
    device: str | None = None
    price: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not Path(self.path).is_dir():
            raise FileNotFoundError(f"path={self.path}: no such folder; give a FINAL folder")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be > 0, got {self.temperature}")
        self.name = self.path
        self._model: RankingModel | None = None
        self._lock = threading.Lock()

    def score(self, query: Prompt, passages: Sequence[str]) -> list[float]:
        """One score for each passage: a reward model's, a reranker's, or the inner product of embeddings.

        A reward model reads a conversation in its chat format, the others as plain text. Raises JudgeStopped for a
        model that gives no scores.
        """
        with self._lock:
            model = self._loaded()
            scores = model.scores_of(query, passages)
        if scores is None:
            raise JudgeStopped(
                f"judge.path={self.path} holds a model of kind {model.kind}, which gives no scores; give a "
                "reward model (loss=bradley-terry), a reranker or a bi-encoder (for lists, a listwise reranker too)"
            )
        return scores

    def order(self, query: Prompt, passages: Sequence[str]) -> list[int]:
        """The positions of the passages, best first. Raises JudgeStopped for a model that cannot rank."""
        with self._lock:
            model = self._loaded()
            if isinstance(model, OrdersLists):
                return model.order_of(plain_text(query), passages)
        scores = self.score(query, passages)
        return sorted(range(len(scores)), key=scores.__getitem__, reverse=True)

    def _loaded(self) -> RankingModel:
        if self._model is None:
            from rankpo.models.load import load_saved

            self._model = load_saved(self.path, self.device)
        return self._model

    def request(self, query: Prompt, a: str, b: str) -> dict[str, object]:
        return {"judge": self.name, "temperature": self.temperature, "query": query, "a": a, "b": b}

    def request_list(self, query: Prompt, passages: Sequence[str]) -> dict[str, object]:
        return {"judge": self.name, "query": query, "passages": list(passages)}

    def ask(self, request: Mapping[str, object]) -> Reply:
        if "passages" in request:
            order = self.order(cast("Prompt", request["query"]), cast("Sequence[str]", request["passages"]))
            return Reply(order_words(order), self.name)
        first, second = self.score(cast("Prompt", request["query"]), [str(request["a"]), str(request["b"])])
        choice = "A" if first >= second else "B"
        return Reply(words(choice, 1 / (1 + math.exp(-abs(first - second) / self.temperature))), self.name)
