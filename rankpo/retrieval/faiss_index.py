"""Search with faiss, exact or approximate: flat, HNSW or IVF-PQ, by inner product, built from blocks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from rankpo.storage.atomic import replacing

if TYPE_CHECKING:
    from rankpo.retrieval.embeddings import Embeddings

KINDS = ("flat", "hnsw", "ivf_pq")
ROWS_PER_CENTROID = 39  # faiss warns below this number, since k-means needs more training rows.
GPU_DEPTH = 2048  # faiss's own limit for k on a GPU
QUERIES_AT_ONCE = 4096
BLOCK = 65536

Say = Callable[[str], None]


class FaissError(RuntimeError):
    """Raised if faiss is missing or cannot index the vectors."""


@dataclass(frozen=True, kw_only=True)
class FaissSettings:
    """Settings of an index. kind: flat (exact, all vectors in memory), hnsw (with a graph), ivf_pq (compressed codes).

    hnsw: `links` per vector (M), `build_depth` and `search_depth` candidates (efConstruction, efSearch).
    ivf_pq: `num_lists` cells (None: 4·√rows), `num_probes` of them searched; `code_bytes` sub-vectors of `code_bits`
    bits each; `train_rows` training vectors. rescore: an ivf_pq search retrieves rescore · top_k candidates and
    ranks them by exact inner products with the vectors on disk; 0 keeps the scores of the codes.
    check_queries: for approximate kinds, the number of queries that are also searched exactly to report the recall.
    gpu: whether to use a GPU if faiss supports it; hnsw and top_k > 2,048 run on the CPU.
    """

    kind: str = "flat"
    links: int = 32
    build_depth: int = 200
    search_depth: int = 128
    num_lists: int | None = None
    num_probes: int = 16
    code_bytes: int = 48
    code_bits: int = 8
    train_rows: int = 262144
    rescore: int = 4
    check_queries: int = 100
    gpu: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        for name in ("links", "build_depth", "search_depth", "num_probes", "code_bytes", "train_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.num_lists is not None and self.num_lists < 1:
            raise ValueError(f"num_lists must be >= 1 or null, got {self.num_lists}")
        if not 4 <= self.code_bits <= 8:
            raise ValueError(f"code_bits must be in 4 to 8, got {self.code_bits}")
        for name in ("rescore", "check_queries"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")

    @property
    def approximate(self) -> bool:
        return self.kind != "flat"

    def lists(self, num_rows: int) -> int:
        """Returns the cells of the coarse quantiser, limited by the number of training rows."""
        return max(1, min(self.num_lists or int(4 * num_rows**0.5), num_rows // ROWS_PER_CENTROID))

    def memory(self, num_rows: int, dim: int) -> int:
        """Returns the bytes of the index; for ivf_pq, including the training rows."""
        if self.kind == "flat":
            return num_rows * dim * 4
        if self.kind == "hnsw":
            return num_rows * (dim * 4 + 2 * self.links * 4)
        return num_rows * (self.code_bytes + 8) + min(num_rows, self.train_rows) * dim * 4

    def check(self, num_rows: int, dim: int) -> None:
        """Raises FaissError for vectors that this kind cannot index."""
        if self.kind != "ivf_pq":
            return
        if dim % self.code_bytes:
            raise FaissError(f"faiss.code_bytes={self.code_bytes} must divide the {dim} dimensions of the embeddings")
        needed = ROWS_PER_CENTROID * 2**self.code_bits
        if num_rows < needed:
            raise FaissError(
                f"faiss.kind=ivf_pq needs at least {needed} rows, but the corpus has {num_rows}; set faiss.kind=flat"
            )


def load_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise FaissError("backend=faiss needs faiss: pip install 'rankpo[faiss]'; or backend=exact") from error
    return faiss


class FaissIndex:
    """An index over the first `num_rows` rows of embeddings; approximate indices are stored next to them for later runs."""

    def __init__(self, settings: FaissSettings, embeddings: Embeddings, say: Say, num_rows: int | None = None) -> None:
        self.settings = settings
        self.embeddings = embeddings
        self.num_rows = len(embeddings) if num_rows is None else num_rows
        self.say = say
        self.index = self._open()

    def _open(self) -> object:
        faiss = load_faiss()
        path = self._path()
        if self.settings.approximate and path.exists():
            index = faiss.read_index(str(path))
            if index.ntotal == self.num_rows:
                self.say(f"{self.settings.kind} index from {path}")
                self._set_search_depth(index)
                return index
        index = self._build(faiss)
        if self.settings.approximate:
            with replacing(path) as temporary:
                faiss.write_index(index, str(temporary))
        return index

    def _path(self) -> Path:
        searching = {"num_probes", "search_depth", "rescore", "check_queries", "gpu"}
        built = {name: value for name, value in asdict(self.settings).items() if name not in searching}
        key = xxhash.xxh3_64_hexdigest(json.dumps([built, self.num_rows], sort_keys=True).encode())
        return self.embeddings.folder / f"faiss-{self.settings.kind}-{key}.index"

    def _build(self, faiss: Any) -> Any:
        settings, dim = self.settings, self.embeddings.encoding.dim
        settings.check(self.num_rows, dim)
        self.say(f"building a {settings.kind} index of {self.num_rows} x {dim}")
        if settings.kind == "flat":
            index = faiss.IndexFlatIP(dim)
        elif settings.kind == "hnsw":
            index = faiss.IndexHNSWFlat(dim, settings.links, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = settings.build_depth
        else:
            quantiser = faiss.IndexFlatIP(dim)
            lists = settings.lists(self.num_rows)
            codes = (settings.code_bytes, settings.code_bits)
            index = faiss.IndexIVFPQ(quantiser, dim, lists, *codes, faiss.METRIC_INNER_PRODUCT)
            index.train(self._train_rows())
        self._set_search_depth(index)
        for block in self.embeddings.blocks(self.num_rows):
            for part in block.split(BLOCK):
                index.add(part.float().numpy())
        return index

    def _set_search_depth(self, index: Any) -> None:
        if self.settings.kind == "hnsw":
            index.hnsw.efSearch = self.settings.search_depth
        elif self.settings.kind == "ivf_pq":
            index.nprobe = min(self.settings.num_probes, index.nlist)

    def _train_rows(self) -> np.ndarray:
        """Returns training rows at equal intervals of the corpus, the same in every run."""
        count = min(self.num_rows, self.settings.train_rows)
        return self.embeddings.rows(np.linspace(0, self.num_rows - 1, count).astype(np.int64))

    def search(self, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores [Q, k] float32 and row numbers [Q, k]; number -1 and score -inf fill short lists."""
        depth = min(top_k, self.num_rows)
        rescored = self.settings.kind == "ivf_pq" and self.settings.rescore > 0
        fetched = min(self.num_rows, depth * self.settings.rescore) if rescored else depth
        index = self._on_device(fetched)
        scores = np.empty((len(queries), depth), dtype=np.float32)
        numbers = np.empty((len(queries), depth), dtype=np.int64)
        # The fetched hits of all queries would take several times the memory of the result.
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            part = slice(start, start + QUERIES_AT_ONCE)
            scores[part], numbers[part] = self._search(index, queries[part], fetched, depth, rescored)
        return scores, numbers

    def _search(
        self, index: Any, queries: np.ndarray, fetched: int, depth: int, rescored: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        scores, numbers = index.search(np.ascontiguousarray(queries, dtype=np.float32), fetched)
        if rescored:
            scores = np.stack([self._exact(*row) for row in zip(queries, numbers, strict=True)])
        scores = np.where(numbers < 0, -np.inf, scores)
        # Equal scores are ordered by ascending number, as in exact search.
        order = np.lexsort((numbers, -scores), axis=1)[:, :depth]
        return np.take_along_axis(scores, order, 1), np.take_along_axis(numbers, order, 1)

    def _exact(self, query: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        return self.embeddings.rows(np.maximum(numbers, 0)) @ query

    def _on_device(self, depth: int) -> Any:
        faiss = load_faiss()
        count = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
        if not self.settings.gpu or self.settings.kind == "hnsw" or count == 0:
            return self.index
        if depth > GPU_DEPTH:
            self.say(
                f"faiss returns at most {GPU_DEPTH} documents on a GPU, but {depth} are needed, so the search runs on the CPU"
            )
            return self.index
        return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, self.index)
