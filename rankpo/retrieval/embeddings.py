"""Embeddings of a corpus on disk: memory-mapped shards of fixed size, written by several processes, resumable."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import xxhash

from rankpo.errors import StorageError
from rankpo.models.inputs import tokenizer_state
from rankpo.models.reference import fingerprint_weights
from rankpo.retrieval.quantisation import Quantiser, ranges_of
from rankpo.retrieval.shards import (
    FLOAT_FOLDER,
    META,
    RANGES,
    Encoding,
    EncodingError,
    read_meta,
    remove_embeddings,
    save_hybrid_shard,
    save_shard,
    save_sparse_shard,
    save_token_shard,
    shard_fault,
    shard_path,
    write_meta,
)
from rankpo.retrieval.stored import Embeddings as Embeddings
from rankpo.retrieval.stored import TokenEmbeddings, open_stored, read_quantiser
from rankpo.runs import processes
from rankpo.storage.atomic import replacing

if TYPE_CHECKING:
    from rankpo.models.vectors import GivesVectors

SHARD_SIZE = 16384  # Texts; small enough for several processes to share a corpus of a few shards.

Say = Callable[[str], None]


class Texts(Protocol):
    """Interface of texts with ids, which can be read several times."""

    def texts(self) -> Iterator[tuple[str, str]]: ...


@dataclass(frozen=True)
class TextList:
    """Texts in memory."""

    ids: Sequence[str]
    values: Sequence[str]

    def texts(self) -> Iterator[tuple[str, str]]:
        yield from zip(self.ids, self.values, strict=True)


def describe_encoding(
    model: GivesVectors,
    source: Texts,
    role: str,
    shard_size: int = SHARD_SIZE,
    dtype: str = "float32",
    pool_factor: float = 1.0,
) -> Encoding:
    """Reads every text once. pool_factor: of `GivesVectors.pool_tokens`. Raises EncodingError for an empty id and
    for an id with a line break.
    """

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
        pool_factor=pool_factor,
    )


def encode_texts(
    folder: Path, encoding: Encoding, model: GivesVectors, source: Texts, say: Say
) -> Embeddings | TokenEmbeddings:
    """Writes the missing shards. One process writes each shard, atomically.

    The contents of a shard do not depend on the number of processes. Raises EncodingError if the folder holds another
    encoding.
    """
    if processes.rank() == 0:
        _enter(folder, encoding)
    processes.barrier()
    if encoding.calibrated and not (folder / RANGES).exists():
        return _calibrated(folder, encoding, model, source, say)
    missing = _missing(folder, encoding, say)
    processes.barrier()  # All ranks must see the same shards before new ones appear.
    if missing:
        done = encoding.num_shards - len(missing)
        say(f"encoding {encoding.num_rows} texts into {folder}" + (f", {done} shards exist already" if done else ""))
    own = set(missing[processes.rank() :: processes.world_size()])
    texts = source.texts()
    for shard in range(encoding.num_shards):
        part = list(islice(texts, encoding.shard_size))
        if shard in own:
            _write_shard(folder, shard, part, model, encoding)
            say(f"shard {shard + 1} of {encoding.num_shards} written")
    return _completed(folder, encoding)


def _missing(folder: Path, encoding: Encoding, say: Say) -> list[int]:
    """The numbers of the shards that have to be written."""
    missing = []
    for shard in range(encoding.num_shards):
        fault = shard_fault(folder, encoding, shard)
        if fault is not None:
            missing.append(shard)
            if shard_path(folder, shard).exists():
                say(f"{shard_path(folder, shard)} is damaged ({fault}); it is written again")
    return missing


def _completed(folder: Path, encoding: Encoding) -> Embeddings | TokenEmbeddings:
    """Marks the folder as complete once all processes have written their shards, and opens it."""
    processes.barrier()
    if processes.rank() == 0:
        write_meta(folder, encoding, complete=True)
        shutil.rmtree(folder / FLOAT_FOLDER, ignore_errors=True)
    processes.barrier()
    return open_stored(folder)


def _calibrated(
    folder: Path, encoding: Encoding, model: GivesVectors, source: Texts, say: Say
) -> Embeddings | TokenEmbeddings:
    """Encodes the texts in float32 first, since the ranges of the codes are those of all vectors, and quantises them.

    An interruption continues with the vectors that exist. They are removed when all codes are written.
    """
    floats = encode_texts(folder / FLOAT_FOLDER, replace(encoding, dtype="float32"), model, source, say)
    assert isinstance(floats, Embeddings)
    if processes.rank() == 0:
        write_codes(floats, folder, encoding)
    return _completed(folder, encoding)


def write_codes(vectors: Embeddings, folder: Path, encoding: Encoding) -> None:
    """Writes the vectors in the dtype of `encoding`; the ranges of the codes are those of all vectors, written last."""
    folder.mkdir(parents=True, exist_ok=True)
    ranges = ranges_of(vectors.stored_blocks(), encoding.dim) if encoding.calibrated else None
    quantiser = Quantiser(encoding.dtype, encoding.dim, ranges)
    ids = iter(vectors.ids())
    for shard, block in enumerate(vectors.stored_blocks()):
        codes = quantiser.encode(block) if encoding.quantised else block
        save_shard(folder, shard, list(islice(ids, len(block))), codes, encoding.dtype)
    if ranges is not None:
        with replacing(folder / RANGES) as temporary, temporary.open("wb") as file:
            np.save(file, ranges, allow_pickle=False)


def quantised(vectors: Embeddings, folder: Path, dtype: str) -> Embeddings:
    """A copy of a folder of vectors with another dtype. It is kept if it is complete already."""
    encoding = replace(vectors.encoding, dtype=dtype)
    saved = read_meta(folder)
    if saved is None or saved != (encoding, True):
        remove_embeddings(folder)
        write_codes(vectors, folder, encoding)
        write_meta(folder, encoding, complete=True)
    return Embeddings(folder)


def cached_embeddings(
    cache_dir: str | Path, model: GivesVectors, source: Texts, role: str, say: Say, shard_size: int = SHARD_SIZE
) -> Embeddings | TokenEmbeddings:
    """Returns embeddings under `cache_dir`, which later runs with equal model, texts, prompt and length reuse."""
    encoding = describe_encoding(model, source, role, shard_size)
    folder = Path(cache_dir) / "embeddings" / encoding.key
    if processes.rank() == 0:
        _drop_damaged_meta(folder, say)
    return encode_texts(folder, encoding, model, source, say)


def _drop_damaged_meta(folder: Path, say: Say) -> None:
    """Removes a damaged description of a cached folder, since the folder's name identifies its contents."""
    try:
        read_meta(folder)
    except StorageError as error:
        say(f"{str(error).partition(';')[0]}; it is written again")
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
    folder: Path, shard: int, part: Sequence[tuple[str, str]], model: GivesVectors, encoding: Encoding
) -> None:
    if len(part) != encoding.rows_of(shard):
        raise EncodingError(f"the texts changed during encoding: shard {shard} now has {len(part)} texts")
    texts, ids = [text for _, text in part], [identity for identity, _ in part]
    stored = model.encode_stored(texts, encoding.role)
    if encoding.pool_factor > 1:
        stored = model.pool_tokens(stored, encoding.pool_factor)
    finite = stored.rows.isfinite().all(1)
    bad = torch.arange(len(stored)).repeat_interleave(stored.counts)[~finite].unique().tolist()
    if bad:
        raise EncodingError(f"the embedding of {ids[bad[0]]} is not finite, as are {len(bad)} in its shard")
    if encoding.form == "sparse":
        save_sparse_shard(folder, shard, ids, stored, encoding.dtype)
    elif encoding.form == "hybrid":
        save_hybrid_shard(folder, shard, ids, stored, encoding.dtype)
    elif encoding.form == "tokens":
        save_token_shard(folder, shard, ids, stored, encoding.dtype)
    elif encoding.quantised:
        codes = read_quantiser(folder, encoding).encode(stored.rows.numpy())
        save_shard(folder, shard, ids, codes, encoding.dtype)
    else:
        save_shard(folder, shard, ids, stored.rows.numpy(), encoding.dtype)


def write_folder(folder: Path, encoding: Encoding, vectors: Callable[[int], np.ndarray]) -> Embeddings:
    """Writes a folder of given vectors. `vectors(n)` returns the next n rows [n, D]; ids are the row numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(encoding.num_shards):
        size, first = encoding.rows_of(shard), shard * encoding.shard_size
        ids = [str(first + row) for row in range(size)]
        save_shard(folder, shard, ids, vectors(size), encoding.dtype)
    write_meta(folder, encoding, complete=True)
    return Embeddings(folder)
