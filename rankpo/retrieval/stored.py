"""Encoded texts on disk: the complete folders that task=encode writes, opened as memory maps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from rankpo.models.engine.sparse_vectors import joined, to_csr
from rankpo.models.hybrid.parts import dense_of, sparse_of, tokens_of
from rankpo.retrieval.quantisation import DTYPES, Quantiser
from rankpo.retrieval.shards import (
    META,
    RANGES,
    Encoding,
    EncodingError,
    ids_path,
    load_sparse_shard,
    part_path,
    read_counts,
    read_meta,
    shard_fault,
    shard_path,
    vector_bytes,
)
from rankpo.types import Vectors

ROWS_OF_BLOCK = 65536  # Token vectors of a hybrid model that are in memory at once.


class Stored(ABC):
    """A complete folder with shards of vectors and the ids of the texts. forms: the supported forms of vectors."""

    forms: ClassVar[tuple[str, ...]]
    encoding: Encoding

    def __init__(self, folder: Path) -> None:
        """Raises EncodingError for a folder without embeddings, an incomplete folder, and vectors of another form."""
        self.folder = folder
        saved = read_meta(folder)
        if saved is None:
            below = [path.parent for path in sorted(folder.glob(f"*/{META}"))]
            advice = f"those of this run are in {below[0]}" if below else "create them with task=encode"
            raise EncodingError(f"{folder} holds no embeddings; {advice}")
        self.encoding, complete = saved
        self._opened: dict[int, np.ndarray] = {}
        if not complete:
            raise EncodingError(f"{folder} is not complete; run the same task=encode again to continue it")
        if self.encoding.form not in self.forms:
            raise EncodingError(
                f"{folder} holds {self.encoding.form} vectors, but {' or '.join(self.forms)} vectors are needed"
            )

    def __len__(self) -> int:
        return self.encoding.num_rows

    @property
    def sparse(self) -> bool:
        """Whether the folder holds sparse vectors."""
        return self.encoding.form == "sparse"

    @property
    def bytes(self) -> int:
        """The bytes on disk of the vectors or codes, without the ids."""
        return vector_bytes(self.folder)

    @abstractmethod
    def vectors(self, numbers: np.ndarray) -> Vectors:
        """The vectors of texts, float32, in that order."""

    def _shard(self, shard: int) -> np.ndarray:
        """Returns [rows, D]. Raises EncodingError for damaged files."""
        self._check(shard)
        # Copy on write, since torch needs a writable array and the file must not change.
        return np.load(shard_path(self.folder, shard), mmap_mode="c", allow_pickle=False)

    def _kept_shard(self, shard: int) -> np.ndarray:
        """As `_shard`, mapped once: rows of one text after another would map the same shards millions of times."""
        if shard not in self._opened:
            self._opened[shard] = self._shard(shard)
        return self._opened[shard]

    def _check(self, shard: int) -> None:
        if fault := shard_fault(self.folder, self.encoding, shard):
            path = shard_path(self.folder, shard)
            raise EncodingError(f"{path} is damaged ({fault}); run the same task=encode again to write it")

    def ids(self) -> list[str]:
        """Returns the ids of all texts. Raises EncodingError for damaged files."""
        found: list[str] = []
        for shard in range(self.encoding.num_shards):
            path = ids_path(self.folder, shard)
            if fault := shard_fault(self.folder, self.encoding, shard):
                raise EncodingError(f"{path} is damaged ({fault}); run the same task=encode again to write it")
            found.extend(path.read_bytes().decode("utf-8").split("\n")[:-1])
        return found


class Embeddings(Stored):
    """Dense vectors [rows, D], one per text, or sparse vectors; see `sparse_blocks` and `sparse_rows`.

    quantiser: of a folder with codes in place of vectors, which `blocks` and `rows` decode; None: the folder has vectors.
    """

    forms: ClassVar[tuple[str, ...]] = ("dense", "sparse")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.quantiser = read_quantiser(folder, self.encoding) if self.encoding.quantised else None

    def blocks(self, limit: int | None = None) -> Iterator[Tensor]:
        """Yields blocks [c, D] of the first `limit` rows, shard by shard; each is read from disk when used."""
        for block in self.stored_blocks(limit):
            yield torch.from_numpy(block if self.quantiser is None else self.quantiser.decode(block))

    def stored_blocks(self, limit: int | None = None) -> Iterator[np.ndarray]:
        """Like `blocks`, of the vectors or codes as they are on disk."""
        left = len(self) if limit is None else limit
        for shard in range(self.encoding.num_shards):
            if left <= 0:
                return
            yield self._shard(shard)[:left]
            left -= self.encoding.rows_of(shard)

    def sparse_blocks(self, limit: int | None = None) -> Iterator[Vectors]:
        """Yields the sparse vectors of the first `limit` texts, shard by shard."""
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
        found = self.stored_rows(numbers)
        return found.astype(np.float32, copy=False) if self.quantiser is None else self.quantiser.decode(found)

    def stored_rows(self, numbers: np.ndarray) -> np.ndarray:
        """Like `rows`, of the vectors or codes as they are on disk."""
        output = np.empty((len(numbers), self.encoding.columns), dtype=DTYPES[self.encoding.dtype])
        shards = numbers // self.encoding.shard_size
        for shard in np.unique(shards):
            places = np.flatnonzero(shards == shard)
            output[places] = self._kept_shard(int(shard))[numbers[places] % self.encoding.shard_size]
        return output

    def vectors(self, numbers: np.ndarray) -> Vectors:
        if self.sparse:
            return self.sparse_rows(numbers)
        return Vectors(torch.from_numpy(self.rows(numbers)), torch.ones(len(numbers), dtype=torch.int64))


def read_quantiser(folder: Path, encoding: Encoding) -> Quantiser:
    """The quantiser of a folder of codes. Raises EncodingError if the folder's ranges are missing or damaged."""
    if not encoding.calibrated:
        return Quantiser(encoding.dtype, encoding.dim)
    path = folder / RANGES
    try:
        ranges = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise EncodingError(f"{path} cannot be read ({error}); set overwrite=true to encode again") from error
    if ranges.shape != (2, encoding.dim) or ranges.dtype != np.float32 or not np.isfinite(ranges).all():
        raise EncodingError(
            f"{path} must hold [2, {encoding.dim}] finite float32 values, got {list(ranges.shape)} {ranges.dtype}; "
            "set overwrite=true to encode again"
        )
    return Quantiser(encoding.dtype, encoding.dim, ranges)


class TokenEmbeddings(Stored):
    """Token vectors: several rows for a text, one text after another."""

    forms: ClassVar[tuple[str, ...]] = ("tokens",)

    def blocks(self, limit: int | None = None) -> Iterator[Vectors]:
        """The vectors shard by shard, of the first `limit` texts; a block is read from disk when it is used."""
        left = len(self) if limit is None else limit
        for shard in range(self.encoding.num_shards):
            if left <= 0:
                return
            rows = self._shard(shard)
            counts = torch.from_numpy(read_counts(self.folder, shard)[:left])
            yield Vectors(torch.from_numpy(rows[: int(counts.sum())]), counts)
            left -= self.encoding.rows_of(shard)

    def vectors(self, numbers: np.ndarray) -> Vectors:
        parts: dict[int, Tensor] = {}
        shards = numbers // self.encoding.shard_size
        for shard in np.unique(shards).tolist():
            rows, counts = self._kept_shard(shard), read_counts(self.folder, shard)
            ends = counts.cumsum()
            for place in np.flatnonzero(shards == shard).tolist():
                text = int(numbers[place]) % self.encoding.shard_size
                parts[place] = torch.from_numpy(rows[ends[text] - counts[text] : ends[text]]).float()
        found = [parts[place] for place in range(len(numbers))]
        sizes = torch.tensor([len(part) for part in found], dtype=torch.int64)
        return Vectors(torch.cat(found) if found else torch.zeros(0, self.encoding.dim), sizes)


class HybridEmbeddings(TokenEmbeddings):
    """The vectors of a hybrid model: rows [R, D + 2] of `HybridModel`, whose vectors, weights and ids have their own files."""

    forms: ClassVar[tuple[str, ...]] = ("hybrid",)

    def blocks(self, limit: int | None = None) -> Iterator[Vectors]:
        """The rows in blocks of about `ROWS_OF_BLOCK`, of the first `limit` texts."""
        left = len(self) if limit is None else limit
        for shard in range(self.encoding.num_shards):
            if left <= 0:
                return
            counts = torch.from_numpy(read_counts(self.folder, shard)[:left])
            files = self._files(shard)
            starts = counts.cumsum(0) - counts
            for texts in torch.arange(len(counts)).split(_texts_per_block(counts)):
                first, last = int(starts[texts[0]]), int(starts[texts[-1]] + counts[texts[-1]])
                yield Vectors(_joined_rows(files, slice(first, last)), counts[texts])
            left -= self.encoding.rows_of(shard)

    def part_blocks(self, part: str) -> Iterator[Vectors]:
        """One part of all texts in its stored form, shard by shard; only the files of this part are read."""
        for shard in range(self.encoding.num_shards):
            counts = torch.from_numpy(read_counts(self.folder, shard))
            vectors, weights, entries = self._files(shard)
            if part == "sparse":
                yield sparse_of(np.asarray(entries), np.asarray(weights), counts)
            else:
                yield (dense_of if part == "dense" else tokens_of)(torch.from_numpy(vectors), counts)

    def vectors(self, numbers: np.ndarray) -> Vectors:
        parts: dict[int, Tensor] = {}
        shards = numbers // self.encoding.shard_size
        for shard in np.unique(shards).tolist():
            files, counts = self._files(shard), read_counts(self.folder, shard)
            ends = counts.cumsum()
            for place in np.flatnonzero(shards == shard).tolist():
                text = int(numbers[place]) % self.encoding.shard_size
                parts[place] = _joined_rows(files, slice(ends[text] - counts[text], ends[text]))
        found = [parts[place] for place in range(len(numbers))]
        sizes = torch.tensor([len(item) for item in found], dtype=torch.int64)
        return Vectors(torch.cat(found) if found else torch.zeros(0, self.encoding.dim), sizes)

    def _files(self, shard: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Vectors [R, D], weights [R] and ids [R], as memory maps."""
        further = (
            np.load(part_path(self.folder, shard, name), mmap_mode="c", allow_pickle=False)
            for name in ("weights", "entries")
        )
        return self._shard(shard), *further


def _joined_rows(files: tuple[np.ndarray, np.ndarray, np.ndarray], place: slice) -> Tensor:
    """[r, D + 2] float32."""
    vectors, weights, entries = (item[place].astype(np.float32) for item in files)
    return torch.from_numpy(np.concatenate([vectors, weights[:, None], entries[:, None]], 1))


def _texts_per_block(counts: Tensor) -> int:
    """Texts with about `ROWS_OF_BLOCK` rows, on average."""
    return max(1, int(ROWS_OF_BLOCK * len(counts) // max(int(counts.sum()), 1)))


def open_stored(folder: Path) -> Embeddings | TokenEmbeddings:
    """Opens a folder with the class for its form of vectors. Raises EncodingError as `Stored` does."""
    saved = read_meta(folder)
    form = "dense" if saved is None else saved[0].form
    for ragged in (TokenEmbeddings, HybridEmbeddings):
        if form in ragged.forms:
            return ragged(folder)
    return Embeddings(folder)
