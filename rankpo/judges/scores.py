"""Any saved model as a judge: what it scores higher is preferred; its scores alone are training data too."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankpo.judges.base import Judge, Reply, words


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

    def score(self, query: str, passages: Sequence[str]) -> list[float]:
        """One score for each passage: a reranker's, or the inner product of embeddings."""
        with self._lock:
            if self._model is None:
                import rankpo

                self._model = rankpo.load(self.path, self.device)
            if hasattr(self._model, "compute_score"):
                return [float(value) for value in self._model.compute_score([(query, text) for text in passages])]
            embedded = self._model.encode([query], role="query") @ self._model.encode(list(passages)).T
            return [float(value) for value in embedded[0]]

    def request(self, query: str, a: str, b: str) -> dict[str, Any]:
        return {"judge": self.name, "temperature": self.temperature, "query": query, "a": a, "b": b}

    def ask(self, request: Mapping[str, Any]) -> Reply:
        first, second = self.score(request["query"], [request["a"], request["b"]])
        choice = "A" if first >= second else "B"
        return Reply(words(choice, 1 / (1 + math.exp(-abs(first - second) / self.temperature))), self.name)
