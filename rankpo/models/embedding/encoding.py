"""Encoding of plain texts by a bi-encoder, in this process or in several."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from rankpo.models.embedding.parallel import encode_in_processes
from rankpo.runs.logger import counting

if TYPE_CHECKING:
    from rankpo.models.vectors import GivesVectors


def encode(
    model: GivesVectors,
    texts: Sequence[str] | str,
    role: str,
    *,
    devices: Sequence[str] | None,
    progress: bool,
) -> np.ndarray:
    """See `EmbeddingModel.encode`."""
    if role not in ("query", "passage"):
        raise ValueError(f"role must be query or passage, got {role!r}")
    several = [texts] if isinstance(texts, str) else list(texts)
    for index, text in enumerate(several):
        if not isinstance(text, str):
            raise TypeError(f"texts[{index}] must be a string, got {type(text).__name__}")
    if not several:
        return np.zeros((0, model.dim), dtype=np.float32)
    distinct = {text: number for number, text in enumerate(dict.fromkeys(several))}
    sequences = model.inputs.sequences_of(list(distinct), "query" if role == "query" else "candidate")
    if devices is not None and not len(devices):
        raise ValueError("devices must name at least one device, such as cpu, or be None")
    if devices is not None:
        encoder = partial(encode_in_processes, model, sequences, devices)
    else:
        encoder = partial(model.encode_sequences, sequences)
    with counting("encode", len(sequences), shown=progress) as advance:
        embeddings = encoder(advance)
    rows = embeddings.numpy()[[distinct[text] for text in several]]
    return rows[0] if isinstance(texts, str) else rows
