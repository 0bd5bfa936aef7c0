"""Train and align ranking models: bi-encoders, rerankers and causal language models, from one config tree.

Importing this package does nothing; heavy libraries are imported when they are needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rankpo.models.embedding import EmbeddingModel

__version__ = "0.1.0"


def load(path: str | Path, device: str | None = None) -> EmbeddingModel:
    """The saved model of a folder (a run's FINAL, or any sentence-transformers folder), ready to encode.

    device: "cpu", "cuda", …; None takes a GPU if there is one. Raises LoadingError for what cannot be loaded.
    """
    from rankpo.models.build import load_saved

    return load_saved(str(path), device)
