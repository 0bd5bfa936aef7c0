"""How an embedding model reads and pools texts: saved with the weights, used alike wherever the model is used."""

from __future__ import annotations

from dataclasses import dataclass

from rankpo.models.settings import Settings

POOLING = ("cls", "mean", "last")
AUTO = "auto"  # as a key of the config: the architecture decides


@dataclass(frozen=True, kw_only=True)
class EmbeddingSettings(Settings):
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
