"""BACKENDS: the programs that can write answers of a language model."""

from __future__ import annotations

BACKENDS = ("auto", "transformers", "vllm")


def check_backend(backend: str) -> None:
    """Raises ValueError for a name outside BACKENDS."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
