"""Settings of a hybrid model (BGE-M3), saved with the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rankpo.models.settings import Settings

PARTS = ("dense", "sparse", "colbert")


@dataclass(frozen=True, kw_only=True)
class HybridSettings(Settings):
    """Settings of the encoding of a text in several parts, and of their weighted sum.

    parts: the parts of the score, out of `PARTS`. The score is the weighted sum of their scores, with the weights of
    BGE-M3 (https://arxiv.org/abs/2402.03216 section 3.3) as defaults. colbert_dim: dimensions of token vectors; None
    means the hidden size. Lengths are in tokens, including special tokens.
    """

    parts: Sequence[str] = PARTS
    dense_weight: float = 1.0
    sparse_weight: float = 0.3
    colbert_weight: float = 1.0
    colbert_dim: int | None = None
    query_prompt: str = ""
    passage_prompt: str = ""
    query_max_length: int = 512
    passage_max_length: int = 512

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        if not self.parts or len(set(self.parts)) < len(self.parts) or not set(self.parts) <= set(PARTS):
            raise ValueError(f"parts must be a list of some of {', '.join(PARTS)}, got {list(self.parts)}")
        for name in ("dense_weight", "sparse_weight", "colbert_weight"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"{name} must be > 0, got {getattr(self, name)}; to exclude this part, remove it from parts"
                )
        for name in ("query_max_length", "passage_max_length"):
            if getattr(self, name) < 4:
                raise ValueError(f"{name} must be >= 4 tokens, got {getattr(self, name)}")
        if self.colbert_dim is not None and self.colbert_dim < 1:
            raise ValueError(f"colbert_dim must be >= 1 or null, got {self.colbert_dim}")

    @property
    def weights(self) -> tuple[float, ...]:
        """The weight of each of `parts`."""
        own = {"dense": self.dense_weight, "sparse": self.sparse_weight, "colbert": self.colbert_weight}
        return tuple(own[name] for name in self.parts)

    def in_words(self) -> str:
        pairs = zip(self.parts, self.weights, strict=True)
        summed = " + ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in pairs)
        lengths = sorted({self.query_max_length, self.passage_max_length})
        prompts = {"query": self.query_prompt, "passage": self.passage_prompt}
        return ", ".join(
            [
                summed,
                f"{' and '.join(map(str, lengths))} tokens",
                *(f"{name} prompt {text!r}" for name, text in prompts.items() if text),
            ]
        )
