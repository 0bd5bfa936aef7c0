"""Shards on disk: contents, resuming, refusals; and dense search over them, exact and by faiss."""

import json
import re

import numpy as np
import pytest
import torch

from rankpo.config.compose import compose
from rankpo.retrieval.dense import DenseSearch, TooLargeError
from rankpo.retrieval.embeddings import (
    Embeddings,
    TextList,
    cached_embeddings,
    describe_encoding,
    encode_texts,
    write_folder,
)
from rankpo.retrieval.exact import search, search_blocks
from rankpo.retrieval.faiss_index import FaissError, FaissIndex, FaissSettings
from rankpo.retrieval.shards import Encoding, EncodingError
from rankpo.types import Vectors

TEXTS = [f"text number {number} {'and more ' * (number % 4)}" for number in range(11)]
LIST = TextList([f"d{number}" for number in range(11)], TEXTS)


def silent(message):
    pass


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(5)
    config = compose(["model=tiny_bert", "model.random.num_hidden_layers=1", "model.query_prompt=find: "]).model
    return config.build(config.open_inputs(silent), silent)


def stored(folder, vectors, shard_size=1000):
    """A folder of given vectors."""
    encoding = Encoding("m", "i", "t", "passage", len(vectors), vectors.shape[1], "float32", shard_size, {})
    rows = iter(vectors)
    return write_folder(folder, encoding, lambda count: np.stack([next(rows) for _ in range(count)]))


@pytest.mark.parametrize(("role", "dtype"), [("passage", "float32"), ("query", "float16")])
def test_rows_ids_and_blocks_are_those_of_the_texts(tmp_path, model, role, dtype):
    encoding = describe_encoding(model, LIST, role, shard_size=4, dtype=dtype)
    found = encode_texts(tmp_path, encoding, model, LIST, silent)
    expected = model.encode(TEXTS, role)
    tolerance = 1e-6 if dtype == "float32" else 1e-3
    assert sorted(path.name for path in tmp_path.glob("shard-*.npy")) == [f"shard-0000{n}.npy" for n in range(3)]
    assert found.ids() == list(LIST.ids)
    np.testing.assert_allclose(found.rows(np.arange(11)), expected, atol=tolerance)
    np.testing.assert_allclose(found.rows(np.array([10, 0, 5])), expected[[10, 0, 5]], atol=tolerance)
    assert [len(block) for block in found.blocks()] == [4, 4, 3]
    np.testing.assert_allclose(torch.cat(list(found.blocks(6))).float(), expected[:6], atol=tolerance)


def test_an_interrupted_encoding_is_continued_not_repeated(tmp_path, model, monkeypatch):
    encoding = describe_encoding(model, LIST, "passage", shard_size=4)
    real, calls = model.encode_stored, []

    def stops(texts, role):
        if calls:
            raise KeyboardInterrupt
        calls.append(texts)
        return real(texts, role)

    monkeypatch.setattr(model, "encode_stored", stops)
    with pytest.raises(KeyboardInterrupt):
        encode_texts(tmp_path, encoding, model, LIST, silent)
    with pytest.raises(EncodingError, match="is not complete; run the same task=encode again"):
        Embeddings(tmp_path)
    calls.clear()
    monkeypatch.setattr(model, "encode_stored", lambda texts, role: calls.append(texts) or real(texts, role))
    found = encode_texts(tmp_path, encoding, model, LIST, silent)
    assert calls == [TEXTS[4:8], TEXTS[8:]]
    np.testing.assert_allclose(found.rows(np.arange(11)), real(TEXTS, "passage").rows, atol=1e-6)


def test_the_cache_is_shared_by_equal_encodings_only(tmp_path, model, monkeypatch):
    first = cached_embeddings(tmp_path, model, LIST, "passage", silent)
    monkeypatch.setattr(model, "encode_stored", None)  # would fail if it were asked again
    assert cached_embeddings(tmp_path, model, LIST, "passage", silent).folder == first.folder
    monkeypatch.undo()
    other = [
        cached_embeddings(tmp_path, model, LIST, "query", silent),
        cached_embeddings(tmp_path, model, TextList(LIST.ids, [*TEXTS[:-1], "other"]), "passage", silent),
        cached_embeddings(tmp_path, model, TextList(["e0", *LIST.ids[1:]], TEXTS), "passage", silent),
    ]
    with torch.no_grad():
        next(model.parameters()).mul_(1.01)
    other.append(cached_embeddings(tmp_path, model, LIST, "passage", silent))
    assert len({first.folder, *(item.folder for item in other)}) == 5


def test_another_encoding_in_the_folder_is_refused_by_name(tmp_path, model):
    encode_texts(tmp_path, describe_encoding(model, LIST, "passage"), model, LIST, silent)
    fewer = TextList(LIST.ids[:5], TEXTS[:5])
    with pytest.raises(
        EncodingError, match=r"holds another encoding \(other texts, num_rows; inputs are .*\); set overwrite=true"
    ):
        encode_texts(tmp_path, describe_encoding(model, fewer, "passage"), model, fewer, silent)


def test_an_embedding_that_is_not_finite_names_its_text(tmp_path, model, monkeypatch):
    vectors = np.ones((11, 32), dtype=np.float32)
    vectors[7, 3] = np.nan
    monkeypatch.setattr(
        model,
        "encode_stored",
        lambda texts, role: Vectors(torch.from_numpy(vectors), torch.ones(11, dtype=torch.int64)),
    )
    with pytest.raises(EncodingError, match="the embedding of d7 is not finite"):
        encode_texts(tmp_path, describe_encoding(model, LIST, "passage"), model, LIST, silent)
    assert not list(tmp_path.glob("*.npy"))


def test_blocks_are_one_corpus():
    generator = torch.Generator().manual_seed(4)
    queries = torch.randint(-2, 3, (3, 4), generator=generator).float()
    corpus = torch.randint(-2, 3, (23, 4), generator=generator).half()
    whole = search(queries, corpus, 6)
    parts = search_blocks(queries, iter(corpus.split([1, 10, 12])), 6, documents_per_chunk=4)
    assert parts[1].tolist() == whole[1].tolist()
    assert parts[0].tolist() == whole[0].tolist()


@pytest.fixture
def random_sets(tmp_path):
    generator = np.random.default_rng(7)
    corpus = generator.standard_normal((3000, 32)).astype(np.float32)
    queries = generator.standard_normal((40, 32)).astype(np.float32)
    return stored(tmp_path / "queries", queries), stored(tmp_path / "corpus", corpus), queries @ corpus.T


def dense(queries, corpus, top_k, num_documents=None, **options):
    search = DenseSearch(top_k=top_k, device=torch.device("cpu"), say=silent, **options)
    return search.hits(queries, corpus, num_documents)


def test_exact_search_over_shards(random_sets):
    queries, corpus, table = random_sets
    hits = dense(queries, corpus, 10)
    assert np.array_equal(hits.numbers, np.argsort(-table, axis=1)[:, :10])
    np.testing.assert_allclose(hits.scores, -np.sort(-table, axis=1)[:, :10], atol=1e-4)
    limited = dense(queries, corpus, 10, num_documents=1500)
    assert np.array_equal(limited.numbers, np.argsort(-table[:, :1500], axis=1)[:, :10])


class TestFaiss:
    """Flat equals exact; the approximate kinds report the recall that counting by hand gives."""

    def test_flat_is_exact(self, random_sets):
        pytest.importorskip("faiss")
        queries, corpus, _ = random_sets
        exact, flat = dense(queries, corpus, 10), dense(queries, corpus, 10, faiss=FaissSettings())
        assert np.array_equal(flat.numbers, exact.numbers)
        np.testing.assert_allclose(flat.scores, exact.scores, atol=1e-4)
        assert (flat.recall, flat.checked) == (None, 0)

    @pytest.mark.parametrize(
        "settings",
        [
            FaissSettings(kind="hnsw", links=4, build_depth=8, search_depth=10),
            FaissSettings(kind="ivf_pq", code_bytes=8, code_bits=4, num_lists=16, num_probes=4, rescore=0),
            FaissSettings(kind="ivf_pq", code_bytes=8, code_bits=4, num_lists=16, num_probes=8, rescore=10),
        ],
    )
    def test_recall_is_counted_against_the_table(self, random_sets, settings):
        pytest.importorskip("faiss")
        queries, corpus, table = random_sets
        hits = dense(queries, corpus, 10, faiss=settings)
        truth = [set(row) for row in np.argsort(-table, axis=1)[:, :10].tolist()]
        found = [len(set(row) & best) for row, best in zip(hits.numbers.tolist(), truth, strict=True)]
        assert hits.recall == pytest.approx(sum(found) / 400)
        assert 0.1 < hits.recall < 1
        assert hits.checked == 40

    def test_rescoring_gives_exact_products_and_a_better_recall(self, random_sets):
        pytest.importorskip("faiss")
        queries, corpus, table = random_sets
        common = {"kind": "ivf_pq", "code_bytes": 8, "code_bits": 4, "num_lists": 16, "num_probes": 16}
        plain = dense(queries, corpus, 10, faiss=FaissSettings(**common, rescore=0))
        better = dense(queries, corpus, 10, faiss=FaissSettings(**common, rescore=10))
        assert better.recall > plain.recall + 0.1
        np.testing.assert_allclose(better.scores, np.take_along_axis(table, better.numbers, 1), atol=1e-4)

    def test_an_approximate_index_is_built_once(self, random_sets, monkeypatch):
        pytest.importorskip("faiss")
        queries, corpus, _ = random_sets
        settings = FaissSettings(kind="hnsw", links=4)
        first = dense(queries, corpus, 5, faiss=settings)
        monkeypatch.setattr(FaissIndex, "_build", None)
        again = dense(queries, corpus, 5, faiss=FaissSettings(kind="hnsw", links=4, check_queries=0))
        assert np.array_equal(again.numbers, first.numbers)
        assert again.recall is None

    def test_too_small_a_corpus_and_a_wrong_width_are_named(self, random_sets):
        pytest.importorskip("faiss")
        queries, corpus, _ = random_sets
        with pytest.raises(FaissError, match=r"needs at least 9984 rows, but the corpus has 3000; set faiss.kind=flat"):
            dense(queries, corpus, 5, faiss=FaissSettings(kind="ivf_pq", code_bytes=8))
        with pytest.raises(FaissError, match="code_bytes=5 must divide the 32 dimensions"):
            dense(queries, corpus, 5, faiss=FaissSettings(kind="ivf_pq", code_bytes=5))

    def test_missing_results_are_minus_one(self, random_sets):
        """One of 16 cells is searched, and 3,000 rows are asked for."""
        pytest.importorskip("faiss")
        queries, corpus, _ = random_sets
        settings = FaissSettings(
            kind="ivf_pq", code_bytes=8, code_bits=4, num_lists=16, num_probes=1, check_queries=0, rescore=1
        )
        hits = dense(queries, corpus, 3000, faiss=settings)
        missing = hits.numbers == -1
        assert missing.any(axis=1).all()
        assert np.isneginf(hits.scores[missing]).all()
        assert np.isfinite(hits.scores[~missing]).all()
        assert not missing[:, 0].any()

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("kind", "pq", "flat, hnsw, ivf_pq"),
            ("links", 0, ">= 1"),
            ("code_bits", 9, "4 to 8"),
            ("rescore", -1, ">= 0"),
        ],
    )
    def test_settings_name_the_key(self, key, value, message):
        with pytest.raises(ValueError, match=f"{key} must be .*{message}"):
            FaissSettings(**{key: value})


def test_a_search_that_cannot_fit_is_refused_before_it_starts():
    said = []
    with pytest.raises(TooLargeError, match=r"the search needs .* GiB, but only .* GiB are free; lower top_k"):
        DenseSearch(top_k=1000, device=torch.device("cpu"), say=said.append).check_memory(10**9, 10**7, 384)
    assert "1000000000 queries, 10000000 documents" in said[0]


def test_the_meta_file_says_what_was_encoded(tmp_path, model):
    encode_texts(tmp_path, describe_encoding(model, LIST, "query"), model, LIST, silent)
    saved = json.loads((tmp_path / "meta.json").read_text())
    assert saved["complete"] is True
    assert (saved["encoding"]["role"], saved["encoding"]["num_rows"], saved["encoding"]["dim"]) == ("query", 11, 32)
    assert saved["encoding"]["settings"]["query_prompt"] == "find: "


def flip(path):
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["shard-00000.npy", "shard-00000.ids.txt"])
def test_a_changed_shard_is_never_believed(tmp_path, name):
    """One bit of a vector or an id: the same size, so that the checksum alone tells."""
    embeddings = stored(tmp_path, np.eye(5, dtype=np.float32))
    assert len(embeddings.ids()) == 5
    flip(tmp_path / name)
    with pytest.raises(EncodingError, match=rf"is damaged \(the checksum of {re.escape(name)} is wrong\)"):
        embeddings.rows(np.arange(5))
    with pytest.raises(EncodingError, match="is damaged"):
        embeddings.ids()


def test_a_list_of_ids_that_lost_a_line_is_refused(tmp_path):
    embeddings = stored(tmp_path, np.eye(5, dtype=np.float32))
    path = tmp_path / "shard-00000.ids.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    (tmp_path / "shard-00000.sums.json").unlink()  # as an earlier version left it
    with pytest.raises(EncodingError, match="has 4 ids instead of 5"):
        embeddings.ids()
