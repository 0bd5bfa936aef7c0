"""Embeddings of a corpus on disk: memory-mapped shards of fixed size, written by several processes, resumable."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import xxhash
from torch import Tensor

from rankpo.errors import StorageError
from rankpo.models.inputs import tokenizer_state
from rankpo.models.reference import fingerprint_weights
from rankpo.models.sparse.vectors import joined, to_csr
from rankpo.retrieval.shards import (
    META,
    Encoding,
    EncodingError,
    ids_path,
    load_sparse_shard,
    read_meta,
    save_shard,
    save_sparse_shard,
    shard_fault,
    shard_path,
    write_meta,
)
from rankpo.runs import processes
from rankpo.types import Vectors

if TYPE_CHECKING:
    from rankpo.models.embedding.model import EmbeddingModel

SHARD_SIZE = 16384  # texts; small enough that several processes share a corpus of a few shards

Say = Callable[[str], None]


class Texts(Protocol):
    """Texts with ids, read as often as needed."""

    def texts(self) -> Iterator[tuple[str, str]]: ...


@dataclass(frozen=True)
class TextList:
    """Texts that are in memory already."""

    ids: Sequence[str]
    values: Sequence[str]

    def texts(self) -> Iterator[tuple[str, str]]:
        yield from zip(self.ids, self.values, strict=True)


class Embeddings:
    """A complete folder: [rows, D] vectors in shards, opened as memory maps, and the ids of the rows."""

    def __init__(self, folder: Path) -> None:
        """Raises EncodingError for a folder that is none, or is not complete."""
        self.folder = folder
        saved = read_meta(folder)
        if saved is None:
            raise EncodingError(f"{folder} holds no embeddings; make them with task=encode")
        self.encoding, complete = saved
        if not complete:
            raise EncodingError(f"{folder} is not complete; run the same task=encode again to continue it")

    def __len__(self) -> int:
        return self.encoding.num_rows

    def blocks(self, limit: int | None = None) -> Iterator[Tensor]:
        """[c, D] shard by shard, of the first `limit` rows; a block is read from disk when it is used."""
        left = len(self) if limit is None else limit
        for shard in range(self.encoding.num_shards):
            if left <= 0:
                return
            yield torch.from_numpy(self._shard(shard)[:left])
            left -= self.encoding.rows_of(shard)

    def _shard(self, shard: int) -> np.ndarray:
        """[rows, D]. Raises EncodingError for files that are not as they were written."""
        path = shard_path(self.folder, shard)
        self._check(shard)
        # copy on write: torch wants a writable array, and the file stays as it is
        return np.load(path, mmap_mode="c", allow_pickle=False)

    def _check(self, shard: int) -> None:
        if fault := shard_fault(self.folder, self.encoding, shard):
            path = shard_path(self.folder, shard)
            raise EncodingError(f"{path} is damaged ({fault}); the same task=encode makes it again")

    @property
    def sparse(self) -> bool:
        """Whether the folder holds sparse vectors, which `sparse_blocks` and `sparse_rows` give in stored form."""
        return self.encoding.form == "sparse"

    def sparse_blocks(self, limit: int | None = None) -> Iterator[Vectors]:
        """Shard by shard, of the first `limit` texts."""
        left = len(self) if limit is None else limit
        for shard in range(self.encoding.num_shards):
            if left <= 0:
                return
            self._check(shard)
            block = load_sparse_shard(self.folder, shard)
            yield block if len(block) <= left else block.select(torch.arange(left))
            left -= self.encoding.rows_of(shard)

    def sparse_rows(self, numbers: np.ndarray) -> Vectors:
        """The vectors of the given texts, in that order."""
        shards = numbers // self.encoding.shard_size
        order, parts = [], []
        for shard in np.unique(shards):
            places = np.flatnonzero(shards == shard)
            self._check(int(shard))
            chosen = torch.from_numpy(numbers[places] % self.encoding.shard_size)
            parts.append(load_sparse_shard(self.folder, int(shard)).select(chosen))
            order.append(places)
        return joined(parts).select(torch.from_numpy(np.argsort(np.concatenate([[], *order]))))

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """[len(numbers), D] float32, in that order."""
        if self.sparse:
            return np.asarray(to_csr(self.sparse_rows(numbers), self.encoding.dim).toarray())
        output = np.empty((len(numbers), self.encoding.dim), dtype=np.float32)
        shards = numbers // self.encoding.shard_size
        for shard in np.unique(shards):
            places = np.flatnonzero(shards == shard)
            output[places] = self._shard(int(shard))[numbers[places] % self.encoding.shard_size]
        return output

    def ids(self) -> list[str]:
        """Of all rows. Raises EncodingError for files that are not as they were written."""
        found: list[str] = []
        for shard in range(self.encoding.num_shards):
            path = ids_path(self.folder, shard)
            if fault := shard_fault(self.folder, self.encoding, shard):
                raise EncodingError(f"{path} is damaged ({fault}); the same task=encode makes it again")
            found.extend(path.read_bytes().decode("utf-8").split("\n")[:-1])
        return found


def describe_encoding(
    model: EmbeddingModel, source: Texts, role: str, shard_size: int = SHARD_SIZE, dtype: str = "float32"
) -> Encoding:
    """Reads every text once. Raises EncodingError for an id that a line cannot hold."""

    settings = model.settings
    inputs = [tokenizer_state(model.tokenizer), role, settings.to_json()]
    if model.precision != "fp32":
        inputs.append(model.precision)
    digest, count = xxhash.xxh3_128(), 0
    for identity, text in source.texts():
        if len(identity.splitlines()) != 1 or identity.splitlines()[0] != identity:
            raise EncodingError(f"the id {identity!r} of text {count + 1} is empty or has a line break")
        digest.update(f"{len(identity)} {len(text)} {identity} {text}".encode())
        count += 1
    return Encoding(
        model=fingerprint_weights(model),
        inputs=xxhash.xxh3_128_hexdigest(json.dumps(inputs).encode()),
        texts=digest.hexdigest(),
        role=role,
        num_rows=count,
        dim=model.dim,
        dtype=dtype,
        shard_size=shard_size,
        settings=settings.to_json(),
        form=model.stored_form,
    )


def encode_texts(folder: Path, encoding: Encoding, model: EmbeddingModel, source: Texts, say: Say) -> Embeddings:
    """Writes the shards that are missing; each is one process's work, and there whole or not at all.

    What a shard holds does not depend on the number of processes. Raises EncodingError where the folder holds
    another encoding.
    """
    if processes.rank() == 0:
        _enter(folder, encoding)
    processes.barrier()
    missing = []
    for shard in range(encoding.num_shards):
        fault = shard_fault(folder, encoding, shard)
        if fault is not None:
            missing.append(shard)
            if shard_path(folder, shard).exists():
                say(f"{shard_path(folder, shard)} is damaged ({fault}); it is made again")
    processes.barrier()  # every rank has seen the same shards before any is added
    if missing:
        done = encoding.num_shards - len(missing)
        say(f"encoding {encoding.num_rows} texts into {folder}" + (f", {done} shards are there" if done else ""))
    own = set(missing[processes.rank() :: processes.world_size()])
    texts = source.texts()
    for shard in range(encoding.num_shards):
        part = list(islice(texts, encoding.shard_size))
        if shard in own:
            _write_shard(folder, shard, part, model, encoding)
            say(f"shard {shard + 1} of {encoding.num_shards} written")
    processes.barrier()
    if processes.rank() == 0:
        write_meta(folder, encoding, complete=True)
    processes.barrier()
    return Embeddings(folder)


def cached_embeddings(
    cache_dir: str | Path, model: EmbeddingModel, source: Texts, role: str, say: Say, shard_size: int = SHARD_SIZE
) -> Embeddings:
    """Embeddings under `cache_dir`, which later runs with the same model, texts, prompt and length find again."""
    encoding = describe_encoding(model, source, role, shard_size)
    folder = Path(cache_dir) / "embeddings" / encoding.key
    if processes.rank() == 0:
        _drop_damaged_meta(folder, say)
    return encode_texts(folder, encoding, model, source, say)


def _drop_damaged_meta(folder: Path, say: Say) -> None:
    """Removes the description of a cached folder where it is damaged; the folder's name says what its shards hold."""
    try:
        read_meta(folder)
    except StorageError as error:
        say(f"{str(error).partition(';')[0]}; it is made again")
        (folder / META).unlink()


def _enter(folder: Path, encoding: Encoding) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    saved = read_meta(folder)
    if saved is None:
        write_meta(folder, encoding, complete=False)
        return
    old = asdict(saved[0])
    now = json.loads(json.dumps(asdict(encoding)))
    different = [name for name, value in now.items() if old[name] != value]
    if different:
        raise EncodingError(
            f"{folder} holds another encoding (other {', '.join(different)}; inputs are tokenizer, prompt, length, pooling and precision); set overwrite=true or another exp_name"
        )


def _write_shard(
    folder: Path, shard: int, part: Sequence[tuple[str, str]], model: EmbeddingModel, encoding: Encoding
) -> None:
    if len(part) != encoding.rows_of(shard):
        raise EncodingError(f"the texts changed while they were read: shard {shard} has {len(part)} of them now")
    texts, ids = [text for _, text in part], [identity for identity, _ in part]
    if encoding.form == "sparse":
        role = "query" if encoding.role == "query" else "candidate"
        stored = model.encode_vectors(model.inputs.sequences_of(texts, role))
        if not bool(torch.isfinite(stored.rows).all()):
            raise EncodingError(f"a sparse vector of shard {shard} is not finite")
        save_sparse_shard(folder, shard, ids, stored, encoding.dtype)
        return
    vectors = model.encode(texts, encoding.role)
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise EncodingError(f"the embedding of {part[bad[0]][0]} is not finite; {len(bad)} of its shard are not")
    save_shard(folder, shard, ids, vectors, encoding.dtype)


def write_folder(folder: Path, encoding: Encoding, vectors: Callable[[int], np.ndarray]) -> Embeddings:
    """A folder of vectors from elsewhere: `vectors(n)` gives the next n rows, [n, D]; ids are the row numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(encoding.num_shards):
        size, first = encoding.rows_of(shard), shard * encoding.shard_size
        ids = [str(first + row) for row in range(size)]
        save_shard(folder, shard, ids, vectors(size), encoding.dtype)
    write_meta(folder, encoding, complete=True)
    return Embeddings(folder)
