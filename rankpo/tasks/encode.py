"""Encode: the keys of task=encode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rankpo.retrieval.corpus import OWN, POOL, check_source
from rankpo.retrieval.quantisation import DTYPES, FLOATS
from rankpo.tasks.base import Task

ENGINES = ("elasticsearch", "opensearch", "vespa", "qdrant")
STORES = ("parquet", "qdrant", "lancedb")
ROLES = ("passage", "query")


@dataclass(frozen=True, kw_only=True)
class Encode(Task):
    """Encodes a corpus into the folder `output`: shard-NNNNN.npy, their ids, and meta.json with fingerprints.

    corpus: "own" (that of the datasets), "pool" (all passages of their examples), or a file, folder or glob.
    dtype: float32 or float16; int8 or uint8, whose ranges are those of all vectors; binary or ubinary, one bit per
    dimension. The last four are the forms of sentence-transformers' `quantize_embeddings`, for one dense vector per text.
    pool_factor: for kinds with token vectors, clusters the vectors of each passage and stores the means, about
    1/pool_factor of them.
    to: also writes the ids, vectors, texts and titles as a vector store in `output`: "parquet" (vectors.parquet),
    "qdrant" (a folder of qdrant-client's local mode) or "lancedb".
    A second start continues an interrupted encoding. It raises an error if the model, the texts or the inputs have
    changed, unless overwrite=true. The call returns the table's row.
    """

    corpus: str = "own"
    role: str = "passage"
    shard_size: int = 16384
    dtype: str = "float32"
    pool_factor: float = 1.0
    engine: str | None = None
    to: str | None = None
    output: str = "embeddings"

    work: ClassVar[str] = "rankpo.tasks.work.encode"
    in_place_of_datasets: ClassVar[str] = "task.corpus"
    needs: ClassVar[frozenset[str]] = frozenset({"vectors"})

    def __post_init__(self) -> None:
        for name, allowed in (("role", ROLES), ("dtype", DTYPES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.engine is not None and self.engine not in ENGINES:
            raise ValueError(f"engine must be one of {', '.join(ENGINES)} or null, got {self.engine!r}")
        if self.to is not None and self.to not in STORES:
            raise ValueError(f"to must be one of {', '.join(STORES)} or null, got {self.to!r}")
        if self.to in ("qdrant", "lancedb") and self.dtype not in FLOATS:
            raise ValueError(
                f"to={self.to} stores vectors and quantises them itself; set dtype to {' or '.join(FLOATS)}"
            )
        if self.shard_size < 1:
            raise ValueError(f"shard_size must be >= 1, got {self.shard_size}")
        if self.pool_factor < 1 or (self.pool_factor > 1 and self.role != "passage"):
            raise ValueError(f"pool_factor must be >= 1, and 1 with role=query, got {self.pool_factor}")
        check_source(self.corpus, "corpus")

    def reads_datasets(self) -> bool:
        return self.corpus in (OWN, POOL)
