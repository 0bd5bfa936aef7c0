"""Exact search of a million vectors: torch, shard by shard from disk, and faiss's flat index in memory.

python -m benchmarks.search
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.report import Goal, Options, Report, load, parse, publish, ratio, row
from benchmarks.sides import Outcome, Side, Update, measure, require_same

DIM, TOP_K, NUM_QUERIES = 384, 100, 100
SHARD_SIZE = 65536


def benchmark(options: Options) -> Report:
    num_rows = 2000 if options.quick else 1_000_000
    updates = options.updates or (1 if options.quick else 5)
    with TemporaryDirectory(prefix="rankpo-benchmark-") as name:
        folder = Path(name)
        write_vectors(folder, num_rows)
        sides = [Side("torch", torch_update, {"folder": name}), Side("faiss flat", faiss_update, {"folder": name})]
        found = measure(sides, updates, options.threads, options.isolated)
        both = [
            shared_hits(path, path.with_name(path.name.replace("torch", "faiss"))) for path in folder.glob("torch-*")
        ]
    ours, theirs = found["torch"], found["faiss flat"]
    require_same(ours, theirs)
    return Report(
        "search",
        f"Top {TOP_K} of {num_rows} random unit vectors of {DIM} dimensions for {NUM_QUERIES} queries. The value is the "
        "mean score of the hits.",
        [row(side, **{"queries/s": NUM_QUERIES / side.median}) for side in found.values()],
        [Goal("share of hits that both found", float(np.mean(both)), 0.999)],
        remarks(num_rows, ratio(theirs, ours)),
    )


def shared_hits(first: Path, second: Path) -> float:
    """Share of each query's hits that stand in both files; sums in another order may swap two of nearly equal score."""
    rows = zip(np.load(first), np.load(second), strict=True)
    return float(np.mean([len(np.intersect1d(a, b)) for a, b in rows])) / TOP_K


def remarks(num_rows: int, factor: float) -> list[str]:
    from rankpo.retrieval.exact import estimate_memory
    from rankpo.retrieval.faiss_index import FaissSettings

    stated = estimate_memory(NUM_QUERIES, num_rows, DIM, TOP_K, resident=False) / 1e9
    flat = FaissSettings().memory(num_rows, DIM) / 1e9
    return [
        f"torch takes 1/{factor:.2f} of faiss's time",
        f"stated before the start: torch {stated:.2f} GB, faiss {flat:.2f} GB; torch's peak counts pages of the mapped "
        "shards too, which the system takes back when it needs them",
    ]


def write_vectors(folder: Path, num_rows: int) -> None:
    """A folder as task=encode writes it, of random unit vectors."""
    from rankpo.retrieval.embeddings import write_folder
    from rankpo.retrieval.shards import Encoding

    generator = np.random.default_rng(0)

    def shard(size: int) -> np.ndarray:
        vectors = generator.standard_normal((size, DIM), dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    encoding = Encoding("random", "random", "random", "passage", num_rows, DIM, "float32", SHARD_SIZE, {})
    write_folder(folder, encoding, shard)


def queries_of(step: int) -> np.ndarray:
    vectors = np.random.default_rng(step + 1).standard_normal((NUM_QUERIES, DIM), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def torch_update(folder: str) -> Update:
    import torch

    from rankpo.retrieval.embeddings import Embeddings
    from rankpo.retrieval.exact import search_blocks

    corpus = Embeddings(Path(folder))

    def search(queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores, numbers = search_blocks(torch.from_numpy(queries), corpus.blocks(), TOP_K)
        return scores.numpy(), numbers.numpy()

    return _update(folder, "torch", search)


def faiss_update(folder: str) -> Update:
    from rankpo.retrieval.embeddings import Embeddings
    from rankpo.retrieval.faiss_index import FaissIndex, FaissSettings

    index = FaissIndex(FaissSettings(gpu=False), Embeddings(Path(folder)), lambda message: None)
    return _update(folder, "faiss", lambda queries: index.search(queries, TOP_K))


def _update(folder: str, name: str, search: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]) -> Update:
    def update(step: int) -> Outcome:
        scores, numbers = search(queries_of(step))
        np.save(Path(folder) / f"{name}-{step}.npy", numbers)
        return Outcome(value=float(scores.mean()))

    return update


if __name__ == "__main__":
    chosen, before = parse("benchmarks.search"), load()
    publish(benchmark(chosen), chosen, before)
