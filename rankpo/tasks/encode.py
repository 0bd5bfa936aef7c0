"""Encode: the keys of task=encode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rankpo.retrieval.corpus import OWN, POOL, check_source
from rankpo.tasks.base import Task

ROLES = ("passage", "query")
DTYPES = ("float32", "float16")


@dataclass(frozen=True, kw_only=True)
class Encode(Task):
    """Writes `output`: shard-NNNNN.npy, their ids, and meta.json with the fingerprints of model, texts and inputs.

    corpus: "own" (that of the datasets), "pool" (all passages of their examples), or a file, folder or glob.
    Starting again continues an interrupted encoding; another model or corpus is refused without overwrite=true.
    The call returns the table's row.
    """

    corpus: str = "own"
    role: str = "passage"
    shard_size: int = 16384
    dtype: str = "float32"
    output: str = "embeddings"

    work: ClassVar[str] = "rankpo.tasks.work.encode"
    in_place_of_datasets: ClassVar[str] = "task.corpus"
    needs: ClassVar[frozenset[str]] = frozenset({"vectors"})

    def __post_init__(self) -> None:
        for name, allowed in (("role", ROLES), ("dtype", DTYPES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.shard_size < 1:
            raise ValueError(f"shard_size must be >= 1, got {self.shard_size}")
        check_source(self.corpus, "corpus")

    def reads_datasets(self) -> bool:
        return self.corpus in (OWN, POOL)
