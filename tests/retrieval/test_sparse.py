"""Search of sparse vectors: products and the inverted index against every score, sorted."""

import json

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from rankpo.models.engine.sparse_vectors import compact
from rankpo.retrieval.sparse import InvertedIndex, search_products

DIM = 50


def drawn(count, share, seed, whole=False):
    generator = np.random.default_rng(seed)
    values = generator.integers(1, 4, (count, DIM)) if whole else generator.gamma(1.0, 1.0, (count, DIM))
    return torch.tensor(np.where(generator.random((count, DIM)) < share, values, 0), dtype=torch.float32)


def naive(queries, corpus, depth):
    scores = queries.double().numpy() @ corpus.double().numpy().T
    order = np.stack([np.lexsort((np.arange(len(row)), -row)) for row in scores])[:, :depth]
    return np.take_along_axis(scores, order, 1), order


@pytest.mark.parametrize("depth", [1, 7, 300])
@pytest.mark.parametrize("whole", [True, False])
def test_equal_to_a_full_sort(depth, whole):
    """Whole weights are exact and tie often; the index adds the same products in another order."""
    queries, corpus = drawn(9, 0.2, 1, whole), drawn(200, 0.15, 2, whole)
    queries[4] = 0  # A query without any entry: every document has the score 0.
    expected_scores, expected = naive(queries, corpus, depth)
    blocks = [compact(part) for part in corpus.split([90, 90, 20])]
    for scores, numbers in (
        search_products(compact(queries), blocks, DIM, depth),
        InvertedIndex(blocks, DIM).search(compact(queries), depth),
    ):
        assert_allclose(scores.numpy(), expected_scores, rtol=1e-5, atol=1e-6)
        assert_array_equal(numbers.numpy(), expected)


def test_the_index_skips_entries_that_cannot_win():
    """Once the first entries decide, later postings are looked up for the documents that can still win alone."""
    weights = torch.zeros(1000, DIM)
    weights[:20, 0] = torch.linspace(50, 60, 20)
    weights[:, 1:] = drawn(1000, 0.5, 3)[:, 1:].clamp(max=0.5)
    query = torch.full((1, DIM), 0.1)
    query[0, 0] = 9.0
    index = InvertedIndex([compact(weights)], DIM)
    added = []
    postings = index._postings
    index._postings = lambda entry: added.append(int(entry)) or postings(entry)
    scores, numbers = index.search(compact(query), 5)
    expected_scores, expected = naive(query, weights, 5)
    assert_array_equal(numbers.numpy(), expected)
    assert_allclose(scores.numpy(), expected_scores, rtol=1e-5)
    assert len(added) == DIM


def test_engine_files(tmp_path):
    from rankpo.retrieval.embeddings import Embeddings
    from rankpo.retrieval.engine_files import write_engine_file
    from rankpo.retrieval.shards import Encoding, save_sparse_shard, write_meta

    weights = torch.tensor([[0, 1.5, 0], [0.25, 0, 2.0]])
    names = ("model", "inputs", "texts")
    encoding = Encoding(
        **dict.fromkeys(names, "x"),
        role="passage",
        num_rows=2,
        dim=3,
        dtype="float32",
        shard_size=5,
        settings={},
        form="sparse",
    )
    save_sparse_shard(tmp_path, 0, ["d/1", "d 2"], compact(weights), "float32")
    write_meta(tmp_path, encoding, complete=True)
    lines = {}
    for engine in ("elasticsearch", "opensearch", "vespa", "qdrant"):
        write_engine_file(Embeddings(tmp_path), engine, ["a", "b", "##c"], tmp_path / "out.jsonl")
        lines[engine] = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert (
        lines["elasticsearch"]
        == lines["opensearch"]
        == [
            {"index": {"_id": "d/1"}},
            {"sparse_vector": {"b": 1.5}},
            {"index": {"_id": "d 2"}},
            {"sparse_vector": {"a": 0.25, "##c": 2.0}},
        ]
    )
    assert lines["vespa"][1] == {
        "put": "id:rankpo:passage::d%202",
        "fields": {"id": "d 2", "sparse_vector": {"cells": {"a": 0.25, "##c": 2.0}}},
    }
    assert lines["qdrant"][1] == {
        "id": 1,
        "vector": {"sparse_vector": {"indices": [0, 2], "values": [0.25, 2.0]}},
        "payload": {"id": "d 2"},
    }
