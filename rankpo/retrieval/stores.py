"""Vector stores that run inside a program: Parquet files, Qdrant in its local mode, and LanceDB.

Each holds the id, the vector, the text and, where there is one, the title of every text, and a description of the model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np

from rankpo.errors import ConfigError
from rankpo.retrieval.corpus import TextSource
from rankpo.retrieval.embeddings import Embeddings

NEEDS = {"parquet": ("pyarrow", "parquet"), "qdrant": ("qdrant_client", "stores"), "lancedb": ("lancedb", "stores")}
PLACES = {"parquet": "vectors.parquet", "qdrant": "qdrant", "lancedb": "lancedb"}  # In the folder of the shards.
NAME = "texts"  # Of the collection or table, as in `OPENED_BY`.
QDRANT_BATCH = 256
QDRANT_LOCAL = 20_000  # Points, above which qdrant-client itself advises a server.
QDRANT_DISTANCES = {"cosine": "Cosine", "dot": "Dot"}

Block = tuple[list[str], list[str], np.ndarray]  # Ids, texts and vectors [n, D].


def require_store(name: str) -> None:
    """Raises ConfigError if the package of the store is not installed."""
    package, extra = NEEDS[name]
    if find_spec(package) is None:
        raise ConfigError(
            [f"task.to={name} needs the package {package.replace('_', '-')}: pip install 'rankpo[{extra}]'"]
        )


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a store gets. metric: "cosine" or "dot", see `GivesVectors.metric`. about: the description of the model."""

    embeddings: Embeddings
    source: TextSource
    metric: str
    about: Mapping[str, object]

    def blocks(self) -> Iterator[Block]:
        """Yields ids, texts and vectors shard by shard; the vectors have the dtype of the shards."""
        texts = self.source.texts()
        for vectors in self.embeddings.stored_blocks():
            pairs = list(islice(texts, len(vectors)))
            yield [name for name, _ in pairs], [text for _, text in pairs], vectors

    @property
    def described(self) -> dict[str, object]:
        return {**self.about, "metric": self.metric, "dim": self.embeddings.encoding.dim}


def write_store(name: str, content: Content) -> Path:
    """Writes a store in the folder of the shards, in place of an earlier one. Returns its path.

    Raises ConfigError if there are no texts.
    """
    if not len(content.embeddings):
        raise ConfigError([f"task.to={name}: there are no texts to store"])
    target = content.embeddings.folder / PLACES[name]
    with _replacing(target) as place:
        WRITERS[name](place, content)
    return target


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """Yields a new path, whose file or folder replaces the target if the block succeeds."""
    place = target.with_name(f"{target.name}.new")
    _remove(place)
    yield place
    _remove(target)
    place.rename(target)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class Table(Protocol):
    """A table of pyarrow."""

    @property
    def schema(self) -> object: ...


def _tables(content: Content) -> Iterator[Table]:
    """Yields Arrow tables with the columns id, vector, text and title."""
    arrow = import_module("pyarrow")
    titles = content.source.titles()
    for ids, texts, vectors in content.blocks():
        flat = arrow.array(np.ascontiguousarray(vectors).reshape(-1))
        columns = {
            "id": arrow.array(ids, arrow.string()),
            "vector": arrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
            "text": arrow.array(texts, arrow.string()),
            "title": arrow.array([titles.get(name) for name in ids], arrow.string()),
        }
        yield arrow.table(columns).replace_schema_metadata({"rankpo": json.dumps(content.described)})


def _write_parquet(place: Path, content: Content) -> None:
    parquet = import_module("pyarrow.parquet")
    writer = None
    for table in _tables(content):
        writer = writer or parquet.ParquetWriter(place, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def _write_lancedb(place: Path, content: Content) -> None:
    database = import_module("lancedb").connect(str(place))
    table = None
    for block in _tables(content):
        if table is None:
            table = database.create_table(NAME, block)
        else:
            table.add(block)


def _write_qdrant(place: Path, content: Content) -> None:
    models = import_module("qdrant_client.models")
    client = import_module("qdrant_client").QdrantClient(path=str(place))
    distance = models.Distance(QDRANT_DISTANCES[content.metric])
    size = models.VectorParams(size=content.embeddings.encoding.dim, distance=distance)
    client.create_collection(NAME, vectors_config=size, metadata=content.described)
    titles = content.source.titles()
    number = 0
    for ids, texts, vectors in content.blocks():
        for start in range(0, len(ids), QDRANT_BATCH):
            rows = range(start, min(start + QDRANT_BATCH, len(ids)))
            payloads = [{"id": ids[row], "text": texts[row]} for row in rows]
            for payload in payloads:
                if title := titles.get(payload["id"]):
                    payload["title"] = title
            points = vectors[rows.start : rows.stop].astype(np.float32)
            numbers = list(range(number, number + len(rows)))
            client.upsert(NAME, models.Batch(ids=numbers, vectors=points.tolist(), payloads=payloads))
            number += len(rows)
    client.close()


# What opens each store, for the console.
OPENED_BY = {
    "parquet": "pyarrow.parquet.read_table({path!r})",
    "qdrant": "QdrantClient(path={path!r}).query_points('texts', query=vector, limit=10)",
    "lancedb": "lancedb.connect({path!r}).open_table('texts').search(vector).distance_type({metric!r}).limit(10)",
}
WRITERS: Mapping[str, Callable[[Path, Content], None]] = {
    "parquet": _write_parquet,
    "qdrant": _write_qdrant,
    "lancedb": _write_lancedb,
}
