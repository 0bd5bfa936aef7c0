"""Train and align ranking models: bi-encoders, rerankers and causal language models, from one config tree.

Importing this package does nothing; heavy libraries are imported when they are needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

__version__ = "0.1.0"


def load(path: str | Path, device: str | None = None) -> Any:
    """The saved model of a folder or hub id: a run's FINAL, or any sentence-transformers or classification folder.

    An embedding model has `encode(texts, role)`; a reranker `compute_score(pairs)` and `rank(query, documents)`;
    a causal language model `logps(prompts, completions)`; a reward model `rewards(prompts, completions)`.

    device: "cpu", "cuda", …; None takes a GPU if there is one. Raises LoadingError for what cannot be loaded.
    """
    from rankpo.models.load import load_saved

    return load_saved(str(path), device)
