"""task=encode and task=search with kind=sparse: shards on disk, both searches, files for engines, mining."""

import json

import numpy as np
import pytest
from numpy.testing import assert_allclose

import rankpo
from rankpo.errors import ConfigError
from rankpo.models.saving import save
from rankpo.models.sparse.saving import SparseFolder
from rankpo.retrieval.embeddings import Embeddings, EncodingError
from tests.models.sparse.builders import sparse_model
from tests.runs import train

WORDS = ["soil", "wheat", "rain", "plough", "dust", "field", "seed", "barn"]
TEXTS = [f"{a} {b} {c}" for a in WORDS for b in WORDS[:3] for c in WORDS[4:6]]


@pytest.fixture
def world(tmp_path):
    """A saved model, a corpus and queries."""
    save(tmp_path / "model", sparse_model(query_max_length=20), SparseFolder(), {})
    for name, texts in (("corpus", TEXTS), ("queries", WORDS)):
        lines = [json.dumps({"id": f"{name[0]}{n}", "text": text}) for n, text in enumerate(texts)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "data.jsonl").write_text(
        "".join(json.dumps({"query": text.split()[0], "positives": [text]}) + "\n" for text in TEXTS[::6])
    )
    return tmp_path


def run(world, *overrides):
    model = ("model=base", f"model.load_from={world}/model", "kind=sparse", "datasets=[]")
    return train(*model, f"cache_dir={world}/cache", "exp_name=index", *overrides)


def test_encode_search_and_engine_file(world):
    encode = ("task=encode", f"task.corpus={world}/corpus.jsonl", "task.shard_size=20", "task.engine=qdrant")
    folder = run(world, *encode).run_dir / "embeddings"
    stored = Embeddings(folder)
    model = rankpo.load(world / "model", "cpu")
    expected = model.encode(TEXTS).toarray()
    assert_allclose(stored.rows(np.arange(len(TEXTS))), expected, atol=1e-6)
    assert len((folder / "qdrant.jsonl").read_text().splitlines()) == len(TEXTS)
    scores = model.encode(WORDS, "query").toarray() @ expected.T
    for backend in ("exact", "inverted"):
        found = run(
            world, "task=search", f"task.queries={world}/queries.jsonl", f"task.backend={backend}", "task.top_k=5"
        )
        lines = [json.loads(line) for line in (found.run_dir / "search" / "hits.jsonl").read_text().splitlines()]
        for row, line in zip(scores, lines, strict=True):
            assert_allclose([hit["score"] for hit in line["hits"]], np.sort(row)[::-1][:5], rtol=1e-5)
            assert_allclose([row[int(hit["id"][1:])] for hit in line["hits"]], np.sort(row)[::-1][:5], rtol=1e-5)
    with pytest.raises(ConfigError, match="holds sparse vectors; set backend=exact or backend=inverted"):
        run(world, "task=search", f"task.queries={world}/queries.jsonl", "task.backend=faiss")
    entries = folder / "shard-00001.entries.npy"
    entries.write_bytes(entries.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(EncodingError, match=r"the checksum of shard-00001.entries.npy is wrong"):
        Embeddings(folder).sparse_rows(np.array([25]))
    run(world, *encode)
    assert_allclose(Embeddings(folder).rows(np.arange(len(TEXTS))), expected, atol=1e-6)


def test_half_the_disk(world):
    encode = ("task=encode", f"task.corpus={world}/corpus.jsonl", "task.dtype=float16")
    folder = run(world, *encode).run_dir / "embeddings"
    expected = rankpo.load(world / "model", "cpu").encode(TEXTS).toarray()
    assert_allclose(Embeddings(folder).rows(np.arange(len(TEXTS))), expected, rtol=1e-3)


def test_mining_with_sparse_vectors(world):
    data = ("datasets=[rankpo]", f"datasets.rankpo.path={world}/data.jsonl")
    run(world, *data, "task=mine", "mining=dense", "mining.top_k=6", "exp_name=mined")
    lines = [json.loads(line) for line in next(world.rglob("mined.jsonl")).read_text().splitlines()]
    assert lines and all(line["negatives"] for line in lines)
