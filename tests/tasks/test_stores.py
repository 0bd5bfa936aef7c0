"""task=encode task.to=…: the stores hold every text, and their nearest neighbours are those of an exact search."""

from __future__ import annotations

import json

import numpy as np
import pytest

import rankpo.tasks.work.encode as work
from rankpo.data.readers.beir import write_beir
from rankpo.errors import ConfigError
from rankpo.retrieval.embeddings import Embeddings
from tests.runs import TINY, train
from tests.tasks.test_encode import CORPUS

COUNT = len(CORPUS)
METRICS = {"cosine": (), "dot": ("model.normalize=false",)}
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A file of texts, every second one with a title."""
    path = tmp_path_factory.mktemp("stores") / "corpus.jsonl"
    rows = [{"id": name, "text": text} | ({"title": f"T{n}"} if n % 2 else {}) for n, (name, text) in enumerate(CORPUS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def encode(corpus, store, name, *overrides):
    """The folder of shards, and the vectors in it."""
    keys = (f"task.corpus={corpus}", f"task.to={store}", "task.shard_size=8", f"cache_dir={corpus.parent}")
    train(*TINY, "task=encode", *keys, f"exp_name={name}", *overrides)
    stored = Embeddings(corpus.parent / name / "embeddings")
    return stored.folder, stored.rows(np.arange(COUNT))


def nearest(vectors, number, metric):
    """The ids of the texts nearest to one of them, and their scores."""
    rows = vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if metric == "cosine" else vectors
    scores = rows @ rows[number]
    order = np.argsort(-scores, kind="stable")[:6]
    return [CORPUS[place][0] for place in order], scores[order]


@pytest.mark.parametrize("metric", ["cosine", pytest.param("dot", marks=SLOW)])
def test_qdrant(corpus, metric):
    pytest.importorskip("qdrant_client")
    from qdrant_client import QdrantClient

    folder, vectors = encode(corpus, "qdrant", f"qdrant_{metric}", *METRICS[metric])
    client = QdrantClient(path=str(folder / "qdrant"))
    info = client.get_collection("texts")
    assert info.points_count == COUNT and info.config.params.vectors.distance.lower() == metric
    assert info.config.metadata["metric"] == metric and info.config.metadata["settings"]["pooling"] == "mean"
    for number in (0, 7, 19):
        names, scores = nearest(vectors, number, metric)
        found = client.query_points("texts", query=vectors[number].tolist(), limit=6).points
        assert [point.payload["id"] for point in found] == names
        np.testing.assert_allclose([point.score for point in found], scores, rtol=1e-5, atol=1e-6)
    (first, second) = client.retrieve("texts", [0, 1])
    assert first.payload == {"id": "d0", "text": CORPUS[0][1]}
    assert second.payload == {"id": "d1", "text": f"T1 {CORPUS[1][1]}", "title": "T1"}
    client.close()


@pytest.mark.parametrize("metric", ["dot", pytest.param("cosine", marks=SLOW)])
def test_lancedb(corpus, metric):
    lancedb = pytest.importorskip("lancedb")
    folder, vectors = encode(corpus, "lancedb", f"lancedb_{metric}", *METRICS[metric])
    table = lancedb.connect(str(folder / "lancedb")).open_table("texts")
    assert table.count_rows() == COUNT
    assert json.loads(table.schema.metadata[b"rankpo"])["metric"] == metric
    for number in (0, 7, 19):
        names, scores = nearest(vectors, number, metric)
        found = table.search(vectors[number]).distance_type(metric).limit(6).to_list()
        assert [row["id"] for row in found] == names
        np.testing.assert_allclose([1 - row["_distance"] for row in found], scores, rtol=1e-4, atol=1e-5)
    assert [row["title"] for row in table.search().limit(COUNT).to_list() if row["title"]] == [
        f"T{n}" for n in range(1, COUNT, 2)
    ]


@pytest.mark.parametrize("dtype", ["int8", *(pytest.param(dtype, marks=SLOW) for dtype in ("float32", "float16"))])
def test_parquet(corpus, dtype):
    """The vectors as they are in the shards; codes too."""
    parquet = pytest.importorskip("pyarrow.parquet")
    folder, _ = encode(corpus, "parquet", f"parquet_{dtype}", f"task.dtype={dtype}")
    table = parquet.read_table(folder / "vectors.parquet")
    assert table.column("id").to_pylist() == [name for name, _ in CORPUS]
    assert table.column("title").to_pylist()[:3] == [None, "T1", None]
    expected = np.concatenate(list(Embeddings(folder).stored_blocks()))
    found = np.stack(table.column("vector").to_numpy())
    assert found.dtype == expected.dtype and (found == expected).all()
    about = json.loads(table.schema.metadata[b"rankpo"])
    assert about["dim"] == 32 and about["metric"] == "cosine"


def test_a_prior_is_an_inner_product(corpus):
    """Its dimension is no part of a vector of length 1."""
    parquet = pytest.importorskip("pyarrow.parquet")
    folder, _ = encode(corpus, "parquet", "prior", "model.prior_layers=[1]")
    about = json.loads(parquet.read_schema(folder / "vectors.parquet").metadata[b"rankpo"])
    assert about["metric"] == "dot" and about["dim"] == 33


def test_titles_of_a_collection_and_a_second_start(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    write_beir(tmp_path / "beir", CORPUS, [("q", "which")], {"q": {"d2": 1}})
    path = tmp_path / "beir" / "corpus.jsonl"
    path.write_text(path.read_text().replace('"title":""', '"title":"A title"', 3))
    data = ("datasets=beir", f"datasets.beir.path={tmp_path}/beir", f"cache_dir={tmp_path}", "exp_name=i")
    for _ in range(2):
        train(*TINY, *data, "task=encode", "task.to=parquet")
    table = parquet.read_table(tmp_path / "i/embeddings/vectors.parquet")
    assert table.column("title").to_pylist()[:5] == ["A title"] * 3 + [None] * 2
    assert table.column("text")[0].as_py() == f"A title {CORPUS[0][1]}" and len(table) == COUNT


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("task.to=faiss",), r"task\.to must be one of parquet, qdrant, lancedb or null, got 'faiss'"),
        (
            ("task.to=qdrant", "task.dtype=int8"),
            r"task\.to=qdrant stores vectors and quantises them itself; set dtype to",
        ),
        (("task.to=parquet", "kind=sparse"), r"task\.to=parquet stores one dense vector per text, and kind=sparse"),
    ],
)
def test_what_a_store_does_not_take(corpus, overrides, message):
    pytest.importorskip("pyarrow")
    with pytest.raises(ConfigError, match=message):
        encode(corpus, "null", "refused", *overrides)


def test_a_package_that_is_missing_is_named(corpus, monkeypatch):
    monkeypatch.setattr("rankpo.retrieval.stores.find_spec", lambda name: None)
    monkeypatch.setattr(work, "open_source", None)  # before anything is read
    with pytest.raises(ConfigError, match=r"needs the package qdrant-client: pip install 'rankpo\[stores\]'"):
        encode(corpus, "qdrant", "missing")
