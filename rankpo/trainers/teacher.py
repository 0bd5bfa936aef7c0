"""Embeddings of the training texts by a guide or teacher model, computed once, stored on disk, indexed by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xxhash

from rankpo.data.dataset import Dataset
from rankpo.data.loaders.ranking import Group
from rankpo.data.table import ExampleTable, open_table
from rankpo.errors import ConfigError
from rankpo.models.embedding.model import EmbeddingModel
from rankpo.models.load import load_saved
from rankpo.models.reference import fingerprint_weights
from rankpo.models.vectors import GivesVectors, encode_table
from rankpo.runs import processes
from rankpo.runs.computed_once import must_compute
from rankpo.storage.folders import damage, written_whole
from rankpo.types import Batch, TeacherVectors

ROWS_AT_ONCE = 65536  # Number of embeddings that memory holds between writes.
ROLES = {"queries": "query", "candidates": "candidate"}


@dataclass(frozen=True)
class TeacherEmbeddings:
    """Stored embeddings of the training texts by role (`queries`, `candidates`).

    vectors: [n, D] memory-mapped arrays. place: for each row of the run's table, the index of its vector, or -1 if the
    row has no such role.
    """

    vectors: dict[str, np.ndarray]
    place: dict[str, np.ndarray]

    @property
    def dim(self) -> int:
        """The size D of the embeddings."""
        return int(self.vectors["queries"].shape[1])

    def of_batch(self, batch: Batch, groups: Sequence[Group]) -> TeacherVectors:
        """Returns vectors in the order of the batch's sequences, with zeros where a row does not have the role."""
        assert batch.queries is not None
        rows = {
            "queries": (np.array([group.query for group in groups], dtype=np.int64), batch.queries),
            "candidates": (
                np.concatenate([group.candidates for group in groups]),
                batch.candidates[batch.labels.mask],
            ),
        }
        made = {}
        for name, (of_table, of_batch) in rows.items():
            made[name] = torch.zeros(len(batch.sequences), self.vectors[name].shape[1])
            made[name][of_batch] = torch.from_numpy(self.vectors[name][self.place[name][of_table]])
        return TeacherVectors(**made)


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """Inputs of the teacher embeddings: the start model, its table and datasets, and the cache folder."""

    model: GivesVectors
    table: ExampleTable
    datasets: Sequence[Dataset]
    cache_dir: str | Path


def teacher_embeddings(path: str | None, start: Teaching, say: Callable[[str], None]) -> TeacherEmbeddings:
    """Returns embeddings by the model in the folder `path`, or by the start model if `path` is None.

    The cache cache_dir/teacher is keyed by weights, settings and texts, so that runs and sweeps share it. A lock lets one
    of several simultaneous jobs compute the embeddings. Raises ConfigError for a model of another kind.
    """
    model = start.model if path is None else _loaded(path, start.model.device)
    pieces = model.inputs.pieces()
    table = start.table if path is None else open_table(start.cache_dir, start.datasets, pieces, say)
    key = "|".join((fingerprint_weights(model), repr(model.settings), table.folder.name))
    folder = Path(start.cache_dir) / "teacher" / xxhash.xxh3_128_hexdigest(key.encode())
    rows = {"queries": np.unique(table.query), "candidates": np.unique(table.candidates)}
    with must_compute(folder, say) as ours:
        if ours:
            say(f"computing embeddings of {sum(map(len, rows.values()))} texts by {path or 'the start model'}")
            _write(folder, model, table, rows)
    if fault := damage(folder):
        raise ConfigError(
            [f"{folder} is damaged ({fault}); remove it, and the next start computes the embeddings again"]
        )
    vectors = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ROLES}
    return TeacherEmbeddings(vectors, _places(start.table, table, rows))


def _loaded(path: str, device: torch.device) -> GivesVectors:
    model = load_saved(path, str(device))
    if not isinstance(model, EmbeddingModel):
        raise ConfigError([f"{path} holds a model of kind {model.kind}; a guide or teacher must be an embedding model"])
    return model.requires_grad_(False)


def _write(folder: Path, model: GivesVectors, table: ExampleTable, rows: dict[str, np.ndarray]) -> None:
    """Encodes each rank's share; rank 0 writes block by block."""
    if processes.rank() == 0:
        with written_whole(folder) as temporary:
            _encode(model, table, rows, temporary)
    else:
        _encode(model, table, rows, None)
    processes.barrier()


def _encode(model: GivesVectors, table: ExampleTable, rows: dict[str, np.ndarray], folder: Path | None) -> None:
    for name, role in ROLES.items():
        chosen, file = rows[name], None
        if folder is not None:
            shape = (len(chosen), model.dim)
            file = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype=np.float32, shape=shape)
        for start in range(0, len(chosen), ROWS_AT_ONCE):
            vectors = encode_table(model, table, chosen[start : start + ROWS_AT_ONCE], role)
            if not vectors.single:
                raise ConfigError([f"a teacher of kind {model.kind} has several vectors per text; use kind=embedding"])
            block = vectors.rows
            if file is not None:
                file[start : start + len(block)] = block.numpy()
        if file is not None:
            file.flush()


def _places(table: ExampleTable, other: ExampleTable, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Maps rows between two tables that hold the same examples in the same order."""
    made = {}
    pairs = {"queries": (table.query, other.query), "candidates": (table.candidates, other.candidates)}
    for name, (own, theirs) in pairs.items():
        assert len(own) == len(theirs), "tables of the same datasets hold the same examples"
        made[name] = np.full(table.num_rows, -1, dtype=np.int64)
        made[name][np.asarray(own)] = np.searchsorted(rows[name], np.asarray(theirs))
    return made
