"""The files of a folder of embeddings: shards of vectors, ids, checksums and the description."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import xxhash

from rankpo.errors import StorageError
from rankpo.retrieval.quantisation import BINARY, DTYPES, FLOATS, SCALAR
from rankpo.storage.atomic import replacing
from rankpo.storage.folders import checksum
from rankpo.storage.json_files import read_json, write_json
from rankpo.types import Vectors

META, FORMAT_VERSION = "meta.json", 1
LOCKS = (".lock", ".lock.holder", ".lock.soft")
# Forms. dense: one vector per text. sparse: active entries and weights of each text. tokens: its token vectors.
# hybrid: the vectors of its tokens, and their weights and ids.
FORMS = ("dense", "sparse", "tokens", "hybrid")
PARTS: Mapping[str, tuple[str, ...]] = {
    "dense": (),
    "sparse": ("entries", "counts"),
    "tokens": ("counts",),
    "hybrid": ("weights", "entries", "counts"),
}  # Further files.
RANGES = "ranges.npy"  # Of int8 and uint8, [2, D] float32: what `quantize_embeddings` takes as `ranges`.
FLOAT_FOLDER = "float32"  # The vectors of int8 and uint8 before their ranges are known.
WRITTEN = ("shard-*.npy", "shard-*.ids.txt", "shard-*.sums.json", "faiss-*.index", RANGES, META)
HEADER_BYTES = 128  # Header of a .npy file with two axes.


class EncodingError(RuntimeError):
    """Raised for an unusable folder of embeddings and for an embedding that is not finite."""


@dataclass(frozen=True)
class Encoding:
    """Description of a folder of embeddings; folders with equal fields hold equal vectors.

    model: fingerprint of the weights. inputs: fingerprint of tokenizer, prompt, length, pooling and precision. texts:
    fingerprint of ids and texts. role: "query" or "passage". pool_factor: of `GivesVectors.pool_tokens`; 1 means no
    pooling. settings: of the model, for readers and for `task=search`. dim: D, also where `dtype` packs eight to a byte.
    """

    model: str
    inputs: str
    texts: str
    role: str
    num_rows: int
    dim: int
    dtype: str
    shard_size: int
    settings: Mapping[str, object]
    format: int = FORMAT_VERSION
    form: str = "dense"
    pool_factor: float = 1.0

    @property
    def key(self) -> str:
        values = asdict(self)
        if self.form == "dense":  # Descriptions of earlier versions lack this key.
            del values["form"]
        return xxhash.xxh3_128_hexdigest(json.dumps(values, sort_keys=True).encode())

    @property
    def quantised(self) -> bool:
        return self.dtype not in FLOATS

    @property
    def calibrated(self) -> bool:
        """Whether the codes need the ranges of the dimensions."""
        return self.dtype in SCALAR

    @property
    def columns(self) -> int:
        """The columns of a shard of dense vectors."""
        return -(-self.dim // 8) if self.dtype in BINARY else self.dim

    @property
    def num_shards(self) -> int:
        return -(-self.num_rows // self.shard_size)

    def rows_of(self, shard: int) -> int:
        return min(self.shard_size, self.num_rows - shard * self.shard_size)


def remove_embeddings(folder: Path) -> None:
    """Removes the shards, ids, indices and description of a folder of embeddings, and keeps other files.

    Raises EncodingError for a folder with files but without a description of embeddings.
    """
    if not (folder / META).exists():
        if folder.is_dir() and any(path.name not in LOCKS for path in folder.iterdir()):
            raise EncodingError(
                f"{folder} holds files other than embeddings, which overwrite=true does not remove; choose another folder"
            )
        return
    for pattern in WRITTEN:
        for path in folder.glob(pattern):
            path.unlink()
    shutil.rmtree(folder / FLOAT_FOLDER, ignore_errors=True)


def save_shard(folder: Path, shard: int, ids: Sequence[str], vectors: np.ndarray, dtype: str) -> None:
    with replacing(ids_path(folder, shard)) as temporary:
        temporary.write_bytes("".join(f"{identity}\n" for identity in ids).encode())
    # The file of vectors is written last and marks a complete shard.
    with replacing(shard_path(folder, shard)) as temporary:
        with temporary.open("wb") as file:
            np.save(file, vectors.astype(DTYPES[dtype]), allow_pickle=False)
        sums = {"rows": len(ids), "ids": checksum(ids_path(folder, shard)), "vectors": checksum(temporary)}
        write_json(_sums_path(folder, shard), sums)


def save_sparse_shard(folder: Path, shard: int, ids: Sequence[str], vectors: Vectors, dtype: str) -> None:
    """Writes the shard's entries [nnz] and counts [rows], and then its weights [nnz] as `save_shard` writes vectors."""
    parts = {"entries": vectors.rows[:, 0].numpy().astype(np.int32), "counts": vectors.counts.numpy()}
    _save_with_parts(folder, shard, ids, vectors.rows[:, 1].numpy(), dtype, parts)


def save_token_shard(folder: Path, shard: int, ids: Sequence[str], vectors: Vectors, dtype: str) -> None:
    """Writes the counts [texts] of the shard's token vectors, and then the vectors as `save_shard` writes them."""
    parts = {"counts": vectors.counts.numpy().astype(np.int32)}
    _save_with_parts(folder, shard, ids, vectors.rows.numpy(), dtype, parts)


def save_hybrid_shard(folder: Path, shard: int, ids: Sequence[str], vectors: Vectors, dtype: str) -> None:
    """Writes counts [texts], weights and ids [R] of tokens, and then the vectors as `save_shard` writes them.

    vectors: rows [R, D + 2], see `HybridModel`. dtype: of the vectors; weights stay float32.
    """
    rows = vectors.rows.numpy()
    parts = {
        "weights": rows[:, -2].astype(np.float32),
        "entries": rows[:, -1].astype(np.int32),
        "counts": vectors.counts.numpy().astype(np.int32),
    }
    _save_with_parts(folder, shard, ids, rows[:, :-2], dtype, parts)


def _save_with_parts(
    folder: Path, shard: int, ids: Sequence[str], vectors: np.ndarray, dtype: str, parts: Mapping[str, np.ndarray]
) -> None:
    for name, values in parts.items():
        with replacing(part_path(folder, shard, name)) as temporary, temporary.open("wb") as file:
            np.save(file, values, allow_pickle=False)
    save_shard(folder, shard, ids, vectors, dtype)
    sums = read_json(_sums_path(folder, shard))
    further = {name: checksum(part_path(folder, shard, name)) for name in parts}
    write_json(_sums_path(folder, shard), {**sums, **further})


def load_sparse_shard(folder: Path, shard: int) -> Vectors:
    """The stored form of a sparse shard: rows [nnz, 2] of entry and weight."""
    entries = np.load(part_path(folder, shard, "entries"), allow_pickle=False).astype(np.float32)
    weights = np.load(shard_path(folder, shard), allow_pickle=False).astype(np.float32)
    counts = np.load(part_path(folder, shard, "counts"), allow_pickle=False)
    return Vectors(torch.from_numpy(np.stack([entries, weights], 1)), torch.from_numpy(counts))


def read_counts(folder: Path, shard: int) -> np.ndarray:
    """[texts] int64 rows of each text of a shard."""
    counts: np.ndarray = np.load(part_path(folder, shard, "counts"), allow_pickle=False)
    return counts.astype(np.int64)


def part_path(folder: Path, shard: int, part: str) -> Path:
    return folder / f"shard-{shard:05d}.{part}.npy"


_sound: dict[Path, tuple[tuple[int, int], ...]] = {}  # Sizes and times of verified shards.


def shard_fault(folder: Path, encoding: Encoding, shard: int) -> str | None:
    """Returns a description of damage to the files of a shard, or None. A process verifies each version of a shard once.

    Shards of earlier versions have no checksums; for them, only sizes and the number of ids are compared.
    """
    vectors, ids = shard_path(folder, shard), ids_path(folder, shard)
    parts = {name: part_path(folder, shard, name) for name in PARTS[encoding.form]}
    for path in (vectors, ids, *parts.values()):
        if not path.is_file():
            return f"{path.name} is missing"
    stamp = tuple((path.stat().st_size, path.stat().st_mtime_ns) for path in (vectors, ids, *parts.values()))
    if _sound.get(vectors) == stamp:
        return None
    rows = encoding.rows_of(shard)
    size = HEADER_BYTES + rows * encoding.columns * np.dtype(DTYPES[encoding.dtype]).itemsize
    if encoding.form == "dense" and stamp[0][0] != size:
        return f"it has {stamp[0][0]} bytes instead of {size}"
    if (count := ids.read_bytes().count(b"\n")) != rows:
        return f"{ids.name} has {count} ids instead of {rows}"
    try:
        sums = read_json(_sums_path(folder, shard))
    except FileNotFoundError:
        sums = {}
    except StorageError:
        return f"{_sums_path(folder, shard).name} is damaged"
    for name, path in {"vectors": vectors, "ids": ids, **parts}.items():
        if sums and sums.get(name) != checksum(path):
            return f"the checksum of {path.name} is wrong"
    _sound[vectors] = stamp
    return None


def _sums_path(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.sums.json"


def shard_path(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.npy"


def vector_bytes(folder: Path) -> int:
    """The bytes on disk of the vectors or codes of a folder, without the ids."""
    return sum(path.stat().st_size for path in [*folder.glob("shard-*.npy"), *folder.glob(RANGES)])


def ids_path(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.ids.txt"


def read_meta(folder: Path) -> tuple[Encoding, bool] | None:
    """Returns the description of a folder and whether it is complete; None without a description.

    Raises StorageError for a damaged file.
    """
    path = folder / META
    try:
        values = read_json(path, "set overwrite=true to encode again")
        return Encoding(**values["encoding"]), bool(values["complete"])
    except FileNotFoundError:
        return None
    except (KeyError, TypeError) as error:
        raise StorageError(f"{path} is not a description of embeddings; set overwrite=true to encode again") from error


def write_meta(folder: Path, encoding: Encoding, complete: bool) -> None:
    write_json(folder / META, {"encoding": asdict(encoding), "complete": complete})
