"""The example of a parsed record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rankpo.data.readers.parsed import Parsed
from rankpo.types import Example

ALONE = "no_in_batch_neg"  # FlagEmbedding's suffix of files and folders whose queries see their own negatives alone
T = TypeVar("T")


def example_of(parsed: Parsed, kept: Sequence[int], extras: Mapping[str, Any]) -> Example:
    """kept: numbers of the candidates that the example keeps. extras: further fields of `Example`, as the record has them."""

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
    """Whether the name of a file, or of its folder, says that its queries see their own negatives alone."""
    return path.name.split(".")[0].endswith(ALONE) or path.parent.name.endswith(ALONE)
