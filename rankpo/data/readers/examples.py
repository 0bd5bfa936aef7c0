"""Examples of parsed records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rankpo.data.readers.parsed import Parsed
from rankpo.types import Example

ALONE = "no_in_batch_neg"  # FlagEmbedding's suffix of files and folders without in-batch negatives.
T = TypeVar("T")


def example_of(parsed: Parsed, kept: Sequence[int], extras: Mapping[str, Any]) -> Example:
    """The example of a parsed record. kept: indices of the candidates to keep. extras: further fields of `Example`."""

    def taken(values: Sequence[T] | None) -> tuple[T, ...] | None:
        return None if values is None else tuple(values[index] for index in kept)

    return Example(
        query=parsed.query,
        candidates=tuple(parsed.candidates[index] for index in kept),
        relevance=tuple(parsed.relevance[index] for index in kept),
        teacher=taken(parsed.teacher),
        confidence=parsed.confidence,
        relevant=taken(parsed.relevant),
        grades=taken(parsed.grades),
        **extras,
    )


def sees_own_negatives_alone(path: Path) -> bool:
    """Whether the name of a file or of its folder excludes in-batch negatives."""
    return path.name.split(".")[0].endswith(ALONE) or path.parent.name.endswith(ALONE)
