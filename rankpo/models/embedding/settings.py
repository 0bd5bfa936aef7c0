"""How an embedding model reads and pools texts: saved with the weights, used alike wherever the model is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

POOLING = ("cls", "mean", "last")
AUTO = "auto"  # as a key of the config: the architecture decides


@dataclass(frozen=True, kw_only=True)
class EmbeddingSettings:
    """pooling: cls, mean or last token, found by lengths. Lengths in tokens, special tokens included.

    truncate_dim: the first dimensions are kept (Matryoshka), None for all.
    """

    pooling: str = "mean"
    normalize: bool = True
    query_prompt: str = ""
    passage_prompt: str = ""
    query_max_length: int = 512
    passage_max_length: int = 512
    truncate_dim: int | None = None

    def __post_init__(self) -> None:
        if self.pooling not in (AUTO, *POOLING):
            raise ValueError(f"pooling must be one of {', '.join((AUTO, *POOLING))}, got {self.pooling!r}")
        for name in ("query_max_length", "passage_max_length"):
            if getattr(self, name) < 4:
                raise ValueError(f"{name} must be >= 4 tokens, got {getattr(self, name)}")
        if self.truncate_dim is not None and self.truncate_dim < 1:
            raise ValueError(f"truncate_dim must be >= 1 or null, got {self.truncate_dim}")

    def for_architecture(self, decodes: bool) -> EmbeddingSettings:
        """The settings with pooling=auto decided: only the last token of a decoder has read the whole text."""
        return replace(self, pooling="last" if decodes else "mean") if self.pooling == AUTO else self

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> EmbeddingSettings:
        """Settings from `to_json`'s form; keys of later versions are refused by name."""
        known = {item.name for item in fields(cls)}
        strange = sorted(set(values) - known)
        if strange:
            raise ValueError(f"unknown embedding settings {', '.join(strange)}; known: {', '.join(sorted(known))}")
        return cls(**values)
