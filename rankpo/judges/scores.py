"""Model judge: prefers the passage with the higher score of a saved model; its scores can be training data."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankpo.data.text.conversations import plain_text
from rankpo.judges.base import Judge, JudgeStopped, Reply, words
from rankpo.types import Prompt


@dataclass(kw_only=True)
class ScoresJudge(Judge):
    """path: a saved reranker, reward model or bi-encoder. temperature: divides score gaps before the sigmoid that
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
        self._model: Any = None
        self._lock = threading.Lock()

    def score(self, query: Prompt, passages: Sequence[str]) -> list[float]:
        """One score for each passage: a reward model's, a reranker's, or the inner product of embeddings.

        A reward model reads a conversation in its chat format, the others as plain text. Raises JudgeStopped for a
        model that gives no scores.
        """
        with self._lock:
            if self._model is None:
                import rankpo

                self._model = rankpo.load(self.path, self.device)
            if hasattr(self._model, "rewards"):
                return [float(value) for value in self._model.rewards([query] * len(passages), passages)]
            text = plain_text(query)
            if hasattr(self._model, "compute_score"):
                return [float(value) for value in self._model.compute_score([(text, passage) for passage in passages])]
            if not hasattr(self._model, "encode"):
                raise JudgeStopped(
                    f"judge.path={self.path} holds a model of kind {self._model.kind}, which gives no scores; give a "
                    "reward model (loss=bradley-terry), a reranker or a bi-encoder"
                )
            embedded = self._model.encode([text], role="query") @ self._model.encode(list(passages)).T
            return [float(value) for value in embedded[0]]

    def request(self, query: Prompt, a: str, b: str) -> dict[str, object]:
        return {"judge": self.name, "temperature": self.temperature, "query": query, "a": a, "b": b}

    def ask(self, request: Mapping[str, Any]) -> Reply:
        first, second = self.score(request["query"], [request["a"], request["b"]])
        choice = "A" if first >= second else "B"
        return Reply(words(choice, 1 / (1 + math.exp(-abs(first - second) / self.temperature))), self.name)
