"""task=encode with codes, task=search over them, and the table of forms."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rankpo.data.readers.beir import write_beir
from rankpo.data.readers.trec import read_run
from rankpo.errors import ConfigError
from rankpo.retrieval import embeddings
from rankpo.retrieval.embeddings import Embeddings
from rankpo.retrieval.quantisation import Quantiser, ranges_of
from tests.runs import TINY, launch, train
from tests.tasks.test_encode import CORPUS, QRELS, QUERIES

ROWS = np.arange(len(CORPUS))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A BEIR folder, and its encoding in float32 and in int8 by a tiny model."""
    folder = tmp_path_factory.mktemp("world")
    write_beir(folder / "beir", CORPUS, QUERIES, QRELS)
    for dtype in ("float32", "int8"):
        encode(folder, dtype)
    return folder


def common(folder, name):
    return (*TINY, "datasets=beir", f"datasets.beir.path={folder}/beir", f"cache_dir={folder}", f"exp_name={name}")


def encode(folder, dtype, name=None, *overrides):
    words = ("task=encode", f"task.dtype={dtype}", "task.shard_size=8", *overrides)
    return train(*common(folder, name or dtype), *words)


def index(folder, name):
    return Embeddings(folder / name / "embeddings")


def search(folder, name, index, *overrides):
    words = ("task=search", f"task.index={folder}/{index}/embeddings", "task.top_k=5", *overrides)
    train(*common(folder, name), *words)
    return json.loads((folder / name / "search" / "search.json").read_text())


def codes(stored):
    return np.concatenate(list(stored.stored_blocks()))


def test_int8_has_the_ranges_of_all_vectors(world):
    floats, stored = index(world, "float32").rows(ROWS), index(world, "int8")
    expected = Quantiser("int8", floats.shape[1], ranges_of([floats], floats.shape[1]))
    assert (codes(stored) == expected.encode(floats)).all()
    assert stored.ids() == [name for name, _ in CORPUS]
    assert not (stored.folder / "float32").exists()


def test_binary_is_packed(world):
    encode(world, "binary")
    floats = index(world, "float32").rows(ROWS)
    assert (codes(index(world, "binary")).view(np.uint8) ^ 128 == np.packbits(floats > 0, axis=1)).all()


def test_an_interruption_continues_with_the_vectors(world, monkeypatch):
    """The second start does not encode: its model would raise."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(embeddings, "write_codes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encode(world, "uint8")
    monkeypatch.undo()
    stamps = {path: path.stat().st_mtime_ns for path in (world / "uint8/embeddings/float32").glob("shard-*.npy")}
    assert len(stamps) == 4
    monkeypatch.setattr("rankpo.models.embedding.model.EmbeddingModel.encode_stored", interrupted)
    encode(world, "uint8")
    assert (codes(index(world, "uint8")) == codes(index(world, "int8")).view(np.uint8) ^ 128).all()
    encode(world, "uint8")  # complete: nothing to do


@pytest.mark.slow
def test_a_damaged_shard_is_encoded_with_the_ranges_that_exist(world):
    encode(world, "int8", "damaged")
    path = world / "damaged/embeddings/shard-00001.npy"
    before = path.read_bytes()
    path.write_bytes(before[:-1] + b"\0")
    encode(world, "int8", "damaged")
    assert path.read_bytes() == before


def test_search_of_codes_is_that_of_their_vectors(world):
    summary = search(world, "found", "int8", "task.rescore_multiplier=10")
    assert summary["forms"] == [] and 0 < summary["beir/ndcg@10"] <= 1
    run = read_run(world / "found/search/run.trec")
    # a first stage reads the decoded vectors
    search(world, "candidates", "int8", "task.candidates=bm25", "task.candidate_depth=30", "task.bm25.tokenizer=model")
    other = read_run(world / "candidates/search/run.trec")
    for query, hits in other.items():
        assert list(hits)[:3] == [name for name in run[query] if name in hits][:3]


def test_forms_are_compared(world, capsys):
    forms = "task.forms=[float32,int8,ubinary]"
    summary = search(world, "forms", "float32", forms, "task.metrics=[ndcg@10,recall@5]")
    whole, int8, bits = summary["forms"]
    assert [row["dtype"] for row in summary["forms"]] == ["float32", "int8", "ubinary"]
    assert whole["beir/ndcg@10"] == summary["beir/ndcg@10"]
    for row in (int8, bits):
        for metric in ("ndcg@10", "recall@5"):
            lost = whole[f"beir/{metric}"] - row[f"beir/{metric}"]
            assert row[f"beir/{metric} lost"] == pytest.approx(lost, abs=1e-9)
        assert row["queries/s"] > 0 and 0 <= row["same hits"] <= 1
    assert int8["same hits"] > 0.9 and bits["MB"] < int8["MB"] < whole["MB"]
    assert summary["dtype"] == "float32" and summary["MB"] == whole["MB"]
    printed = capsys.readouterr().out
    assert "same hits" in printed and max(map(len, printed.splitlines()[-20:])) < 200


@pytest.mark.slow
def test_a_form_is_an_index(world):
    search(world, "made", "float32", "task.forms=[int8]")
    made = world / "made/search/forms/int8"
    assert (codes(Embeddings(made)) == codes(index(world, "int8"))).all()
    train(*common(world, "of_form"), "task=search", f"task.index={made}", "task.top_k=5")
    own = search(world, "of_index", "int8")
    assert json.loads((world / "of_form/search/search.json").read_text())["beir/ndcg@10"] == own["beir/ndcg@10"]


@pytest.mark.slow
def test_hybrid_vectors_are_stored_and_searched(world):
    """By the sum of the parts, as evaluate scores them."""
    encode(world, "float32", "hybrid", "kind=hybrid")
    summary = search(world, "hybrid_found", "hybrid", "kind=hybrid", "task.top_k=30")
    evaluated = ("task=evaluate", "eval_datasets=beir", f"eval_datasets.beir.path={world}/beir", "kind=hybrid")
    train(*common(world, "hybrid_judged"), *evaluated, "task.metrics=[ndcg@10]")
    found = json.loads((world / "hybrid_judged/evaluation/model/beir/metrics.json").read_text())["metrics"]
    assert summary["beir/ndcg@10"] == pytest.approx(found["ndcg@10"], abs=1e-9)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("kind=sparse",), r"task\.dtype=int8 is for models with one dense vector .* kind=sparse stores sparse"),
        (("kind=late_interaction",), r"kind=late_interaction stores tokens vectors; use float32 or float16"),
        (("kind=hybrid",), r"task\.dtype=int8 is for models with one dense vector per text, .* use float32"),
        (("task.dtype=binary", "model.prior_layers=[1]"), r"task\.dtype=binary keeps only signs, and .* its prior"),
        (("task.dtype=int4",), r"task\.dtype must be one of float32, float16, int8, uint8, binary, ubinary"),
    ],
)
def test_what_cannot_be_quantised(world, overrides, message):
    with pytest.raises(ConfigError, match=message):
        encode(world, "int8", "refused", *overrides)


def test_bits_of_vectors_with_lengths_are_warned_of(world, capsys):
    encode(world, "binary", "lengths", "model.normalize=false")
    assert (
        "task.dtype=binary keeps only signs, and model.normalize=false gives vectors whose" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("task.forms=[int4]",), r"task\.forms must be of float32, .*, got 'int4'"),
        (("task.forms=[binary]",), r"task\.forms is made of vectors, and task\.index=.* holds codes \(dtype=int8\)"),
        (("task.forms=[int8]", "task.backend=faiss"), "forms are compared by backend=exact without candidates"),
        (("task.rescore_multiplier=-1",), r"rescore_multiplier must be >= 0, got -1"),
        (("task.metrics=[ndgc@10]",), "unknown metric 'ndgc@10'"),
    ],
)
def test_errors_of_the_search_say_what_to_change(world, overrides, message):
    with pytest.raises(ConfigError, match=message):
        search(world, "failing", "int8", *overrides)


def test_unusable_judgements_are_said_and_the_search_goes_on(world, capsys):
    summary = search(world, "unjudged", "int8", "datasets.beir.split=null")
    assert "beir/ndcg@10" not in summary
    assert "no metrics: datasets.beir.split is null" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_write_and_find_the_same(world):
    done = launch(*common(world, "two"), "task=encode", "task.dtype=int8", "task.shard_size=8", processes=2)
    assert done.returncode == 0, done.stderr
    one, two = world / "int8/embeddings", world / "two/embeddings"
    names = sorted(path.name for path in one.iterdir() if path.name != ".lock")
    assert sorted(path.name for path in two.iterdir() if path.name != ".lock") == names and "ranges.npy" in names
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    words = ("task=search", f"task.index={two}", "task.top_k=5")
    done = launch(*common(world, "two_found"), *words, "task.forms=[]", processes=2)
    assert done.returncode == 0, done.stderr
    search(world, "one_found", "int8")
    runs = [(world / name / "search/run.trec").read_bytes() for name in ("one_found", "two_found")]
    assert runs[0] == runs[1]
