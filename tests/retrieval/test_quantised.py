"""Quantised embeddings: codes as those of sentence-transformers, and a search that decodes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rankpo.retrieval.dense import DenseSearch
from rankpo.retrieval.embeddings import quantised, write_folder
from rankpo.retrieval.quantisation import BINARY, SCALAR, Quantiser, ranges_of
from rankpo.retrieval.quantised import QuantisedSearch, integer_products
from rankpo.retrieval.shards import Encoding, EncodingError
from rankpo.retrieval.stored import Embeddings

DIM, ROWS, QUERIES = 20, 90, 40  # 20 does not fill its last byte


def vectors_of(count: int, seed: int, dim: int = DIM) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def folder_of(path, vectors, shard_size=32):
    values = {"model": "m", "inputs": "i", "texts": "t", "role": "passage", "settings": {}}
    encoding = Encoding(**values, num_rows=len(vectors), dim=vectors.shape[1], dtype="float32", shard_size=shard_size)
    rows = iter(vectors)
    return write_folder(path, encoding, lambda count: np.stack([next(rows) for _ in range(count)]))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folders of documents and queries in float32, and the documents in every form."""
    folder = tmp_path_factory.mktemp("quantised")
    documents = folder_of(folder / "documents", vectors_of(ROWS, 1))
    forms = {dtype: quantised(documents, folder / dtype, dtype) for dtype in (*SCALAR, *BINARY, "float16")}
    return documents, folder_of(folder / "queries", vectors_of(QUERIES, 2)), forms


def search(form: Embeddings, queries: Embeddings, top_k: int = 8, rescore: int = 4):
    silent = lambda message: None  # noqa: E731
    found = QuantisedSearch(top_k=top_k, rescore_multiplier=rescore, device=torch.device("cpu"), say=silent)
    assert found.check_memory(len(queries), len(form), DIM) > 0
    return found.hits(queries, form)


@pytest.mark.parametrize("dtype", [*SCALAR, *BINARY])
def test_codes_are_those_of_sentence_transformers(world, dtype):
    quantize = pytest.importorskip("sentence_transformers.util.quantization").quantize_embeddings
    documents, _, forms = world
    vectors = documents.rows(np.arange(ROWS))
    codes = np.concatenate(list(forms[dtype].stored_blocks()))
    expected = quantize(vectors, dtype)
    assert codes.dtype == expected.dtype and (codes == expected).all()
    assert len(np.unique(codes)) > 50
    if dtype in SCALAR:
        ranges = np.load(forms[dtype].folder / "ranges.npy")
        assert (codes == quantize(vectors, dtype, ranges=ranges)).all()
        other = vectors_of(5, 9) * 3  # outside of the ranges
        assert (Quantiser(dtype, DIM, ranges).encode(other) == quantize(other, dtype, ranges=ranges)).all()


def test_codes_by_hand():
    """A range of 255 has steps of 1; a dimension with one value has code 0; bits begin at the highest."""
    ranges = np.array([[0, 3], [255, 3]], dtype=np.float32)
    values = np.array([[0, 3], [10.5, 3], [255, 3], [999, 3]], dtype=np.float32)
    assert Quantiser("uint8", 2, ranges).encode(values).tolist() == [[0, 0], [10, 0], [255, 0], [255, 0]]
    assert Quantiser("int8", 2, ranges).encode(values).tolist() == [
        [-128, -128],
        [-118, -128],
        [127, -128],
        [127, -128],
    ]
    assert Quantiser("int8", 2, ranges).decode(np.array([[-118, -128]], dtype=np.int8)).tolist() == [[10.5, 3.5]]
    bits = np.array([[1, -1, 0, 2, -3]], dtype=np.float32)
    assert Quantiser("ubinary", 5).encode(bits).tolist() == [[0b10010000]]
    assert Quantiser("binary", 5).encode(bits).tolist() == [[0b10010000 - 128]]
    signs = np.array([[1, -1, -1, 1, -1]]) / np.sqrt(5)
    np.testing.assert_allclose(Quantiser("binary", 5).decode(np.array([[16]], dtype=np.int8)), signs, rtol=1e-6)
    assert ranges_of([], 2).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("dtype", SCALAR)
def test_decoded_values_are_half_a_step_away_at_most(world, dtype):
    documents, _, forms = world
    expected, found = documents.rows(np.arange(ROWS)), forms[dtype].rows(np.arange(ROWS))
    steps = (expected.max(0) - expected.min(0)) / 255
    assert (np.abs(expected - found) <= 0.5001 * steps).all()
    np.testing.assert_allclose(torch.cat(list(forms[dtype].blocks(40))), found[:40])
    np.testing.assert_allclose(forms[dtype].vectors(np.array([70, 3])).rows, found[[70, 3]])


def test_float16_and_sizes(world):
    documents, _, forms = world
    assert np.abs(forms["float16"].rows(np.arange(ROWS)) - documents.rows(np.arange(ROWS))).max() < 1e-3
    shards, header = 3, 128
    assert documents.bytes == ROWS * DIM * 4 + shards * header
    assert forms["float16"].bytes == ROWS * DIM * 2 + shards * header
    assert forms["int8"].bytes == ROWS * DIM + shards * header + (2 * DIM * 4 + header)
    assert forms["ubinary"].bytes == ROWS * 3 + shards * header


@pytest.mark.parametrize("dtype", [*SCALAR, *BINARY])
def test_rescoring_all_documents_is_a_search_of_the_decoded_vectors(world, dtype):
    _, queries, forms = world
    table = torch.from_numpy(queries.rows(np.arange(QUERIES)) @ forms[dtype].rows(np.arange(ROWS)).T)
    found = search(forms[dtype], queries, rescore=20)  # 20 · 8 are more than the documents
    np.testing.assert_allclose(found.scores, table.topk(8, dim=1).values, atol=1e-6)
    np.testing.assert_allclose(table.gather(1, torch.from_numpy(found.numbers)), found.scores, atol=1e-6)


def test_the_first_stage_of_bits_is_the_hamming_distance(world):
    _, queries, forms = world
    found = search(forms["ubinary"], queries, rescore=0)
    bits = queries.rows(np.arange(QUERIES))[:, None] > 0
    documents = np.unpackbits(np.concatenate(list(forms["ubinary"].stored_blocks())), axis=1)[None, :, :DIM] > 0
    distances = (bits != documents).sum(2)
    order = np.argsort(distances, axis=1, kind="stable")[:, :8]  # equal distances in the order of the documents
    assert (found.numbers == order).all()
    np.testing.assert_allclose(found.scores, 1 - 2 * np.take_along_axis(distances, order, 1) / DIM, atol=1e-6)


def test_int8_keeps_the_hits_and_bits_need_their_rescoring(world):
    documents, queries, forms = world
    exact = DenseSearch(top_k=8, device=torch.device("cpu"), say=print).hits(queries, documents).numbers

    def kept(dtype: str, rescore: int) -> float:
        numbers = search(forms[dtype], queries, rescore=rescore).numbers
        return float(np.mean([len(np.intersect1d(a, b)) / 8 for a, b in zip(numbers, exact, strict=True)]))

    assert kept("int8", 4) > 0.98 and kept("int8", 0) > 0.95
    assert kept("uint8", 4) == kept("int8", 4)
    assert kept("binary", 4) > kept("binary", 0) + 0.1


def test_the_scores_of_the_first_stage_are_about_those_of_the_vectors(world):
    documents, queries, forms = world
    found = search(forms["int8"], queries, rescore=0)
    products = queries.rows(np.arange(QUERIES)) @ documents.rows(np.arange(ROWS)).T
    assert np.abs(np.take_along_axis(products, found.numbers, 1) - found.scores).max() < 0.02


def test_both_ways_to_integer_products(monkeypatch):
    generator = torch.Generator().manual_seed(3)
    queries, documents = (
        torch.randint(-128, 128, (rows, 33), dtype=torch.int8, generator=generator) for rows in (5, 17)
    )
    expected = (queries.long() @ documents.long().T).float()
    assert (integer_products(queries, documents) == expected).all()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert (integer_products(queries, documents) == expected).all()
    assert integer_products(queries[:0], documents).shape == (0, 17)


@pytest.mark.parametrize("damage", ["missing", "cut", "shape"])
def test_damaged_ranges_are_named(tmp_path, damage):
    form = quantised(folder_of(tmp_path / "v", vectors_of(9, 4)), tmp_path / "int8", "int8")
    path = form.folder / "ranges.npy"
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:40])
    else:
        np.save(path, np.zeros((2, 3), dtype=np.float32))
    with pytest.raises(EncodingError, match=r"ranges\.npy .*; set overwrite=true to encode again"):
        Embeddings(form.folder)


def test_a_form_of_other_vectors_is_written_again(tmp_path):
    first, second = folder_of(tmp_path / "a", vectors_of(70, 4)), folder_of(tmp_path / "b", vectors_of(9, 5))
    quantised(first, tmp_path / "f", "binary")
    stamp = (tmp_path / "f" / "shard-00000.npy").stat().st_mtime_ns
    quantised(first, tmp_path / "f", "binary")
    assert (tmp_path / "f" / "shard-00000.npy").stat().st_mtime_ns == stamp
    assert len(quantised(second, tmp_path / "f", "binary")) == 9
    assert not (tmp_path / "f" / "shard-00001.npy").exists()
