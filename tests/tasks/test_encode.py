"""task=encode and task=search as a user runs them: folders, resuming, two processes, runs that evaluate agrees with."""

import json

import numpy as np
import pytest

from rankpo.data.readers.beir import write_beir
from rankpo.data.readers.trec import read_run
from rankpo.errors import ConfigError
from rankpo.retrieval.embeddings import Embeddings
from rankpo.retrieval.shards import EncodingError
from rankpo.tasks.base import Task
from rankpo.tasks.vector_models import vector_model
from tests.runs import TINY, launch, train

WORDS = ["river", "stone", "cloud", "forest", "signal", "bridge", "lamp", "winter"]
CORPUS = [(f"d{n}", f"{WORDS[n % 8]} {WORDS[(n * 3 + 1) % 8]} number {n}") for n in range(30)]
QUERIES = [(f"q{n}", f"a {WORDS[n]} and a {WORDS[n + 1]}") for n in range(6)]
QRELS = {name: {f"d{n * 4 + 1}": 1, f"d{n}": 2} for n, (name, _) in enumerate(QUERIES)}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A BEIR folder and its encoding by a tiny model."""
    folder = tmp_path_factory.mktemp("world")
    write_beir(folder / "beir", CORPUS, QUERIES, QRELS)
    encode(folder, "encoded", "task.shard_size=8")
    return folder


def common(folder, name):
    return (*TINY, "datasets=[beir]", f"datasets.beir.path={folder}/beir", f"cache_dir={folder}", f"exp_name={name}")


def encode(folder, name, *overrides):
    return train(*common(folder, name), "task=encode", *overrides)


def search(folder, name, *overrides):
    index = f"task.index={folder}/encoded/embeddings"
    train(*common(folder, name), "task=search", index, "task.top_k=5", *overrides)
    return folder / name / "search"


def silent(message):
    pass


def test_the_vectors_are_the_models_own(world):
    found = Embeddings(world / "encoded/embeddings")
    model = vector_model(experiment := encode_experiment(world), Task().open(experiment))
    assert found.ids() == [name for name, _ in CORPUS]
    np.testing.assert_allclose(found.rows(np.arange(30)), model.encode([text for _, text in CORPUS]), atol=1e-6)
    assert found.encoding.num_shards == 4


def encode_experiment(world):
    from rankpo.config.compose import compose

    return compose([*common(world, "encoded"), "task=encode"])


def test_two_processes_write_the_same_files(world):
    done = launch(*common(world, "two"), "task=encode", "task.shard_size=8", processes=2)
    assert done.returncode == 0, done.stderr
    one, two = world / "encoded/embeddings", world / "two/embeddings"
    names = sorted(path.name for path in one.iterdir() if path.name != ".lock")
    assert len(names) == 13
    assert sorted(path.name for path in two.iterdir() if path.name != ".lock") == names
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def test_a_second_start_encodes_nothing_and_another_corpus_is_refused(world, monkeypatch):
    stamps = {path: path.stat().st_mtime_ns for path in (world / "encoded/embeddings").glob("shard-*")}
    encode(world, "encoded", "task.shard_size=8")
    assert stamps == {path: path.stat().st_mtime_ns for path in (world / "encoded/embeddings").glob("shard-*")}
    with pytest.raises(EncodingError, match=r"other inputs.*; set overwrite=true"):
        encode(world, "encoded", "task.shard_size=8", "model.passage_prompt=p: ")


def test_overwrite_starts_again(world):
    encode(world, "again", "task.shard_size=8")
    encode(world, "again", "task.shard_size=8", "task.role=query", "model.query_prompt=q: ", "overwrite=true")
    assert Embeddings(world / "again/embeddings").encoding.role == "query"


def test_search_gives_what_products_of_the_embeddings_give(world):
    folder = search(world, "searched")
    model = vector_model(experiment := encode_experiment(world), Task().open(experiment))
    table = model.encode([text for _, text in QUERIES], "query") @ model.encode([text for _, text in CORPUS]).T
    run = read_run(folder / "run.trec")
    lines = [json.loads(line) for line in (folder / "hits.jsonl").read_text().splitlines()]
    assert [line["query_id"] for line in lines] == [name for name, _ in QUERIES] == list(run)
    for row, line in zip(table, lines, strict=True):
        best = np.argsort(-row)[:5]
        assert [hit["id"] for hit in line["hits"]] == [CORPUS[number][0] for number in best]
        assert [hit["rank"] for hit in line["hits"]] == [1, 2, 3, 4, 5]
        assert [hit["score"] for hit in line["hits"]] == pytest.approx(row[best].tolist(), abs=1e-5)
        assert run[line["query_id"]] == pytest.approx({hit["id"]: hit["score"] for hit in line["hits"]})
    summary = json.loads((folder / "search.json").read_text())
    assert (summary["queries"], summary["documents"], summary["settings"]["top_k"]) == (6, 30, 5)


def test_faiss_flat_writes_the_same_run(world):
    pytest.importorskip("faiss")
    exact, flat = search(world, "exact"), search(world, "flat", "task.backend=faiss")
    assert {query: list(hits) for query, hits in read_run(exact / "run.trec").items()} == {
        query: list(hits) for query, hits in read_run(flat / "run.trec").items()
    }


def test_queries_of_a_file_and_hits_with_the_querys_id(world, tmp_path):
    (tmp_path / "q.jsonl").write_text(json.dumps({"_id": "d3", "text": CORPUS[3][1]}) + "\n")
    found = read_run(search(world, "file", f"task.queries={tmp_path}/q.jsonl") / "run.trec")["d3"]
    assert next(iter(found)) == "d3"
    without = read_run(
        search(world, "other", f"task.queries={tmp_path}/q.jsonl", "task.ignore_identical_ids=true") / "run.trec"
    )["d3"]
    assert len(found) == len(without) == 5
    assert list(without)[:4] == list(found)[1:]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("seed=7",), "was encoded by another model; set model.load_from"),
        (("model.normalize=false",), "was encoded with other settings; set model.normalize=True"),
        (("task.queries=none.jsonl",), "task.queries: none.jsonl does not exist"),
        (("task.backend=scann",), "task.backend must be one of exact, inverted, faiss, plaid, got 'scann'"),
        (("task.faiss.kind=lsh",), "task.faiss.kind must be one of flat, hnsw, ivf_pq"),
        (("task.top_k=0",), "task.top_k must be >= 1, got 0"),
    ],
)
def test_errors_say_what_to_change(world, overrides, message):
    with pytest.raises(ConfigError, match=message):
        search(world, "failing", *overrides)


def test_hits_with_their_texts(world, tmp_path):
    """Of the datasets, or of a file, with titles; a source that lacks texts is refused before the search."""
    lines = (search(world, "texts", "task.texts=true") / "hits.jsonl").read_text().splitlines()
    texts = dict(CORPUS)
    hits = [hit for line in lines for hit in json.loads(line)["hits"]]
    assert len(hits) == 30 and all(list(hit) == ["rank", "id", "score", "text"] for hit in hits)
    assert all(hit["text"] == texts[hit["id"]] for hit in hits)
    rows = [{"id": name, "title": f"T {name}", "text": text} for name, text in CORPUS]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = search(world, "titled", "task.texts=true", f"task.corpus={tmp_path}/corpus.jsonl")
    first = json.loads((folder / "hits.jsonl").read_text().splitlines()[0])["hits"][0]
    assert first["title"] == f"T {first['id']}" and first["text"] == f"{first['title']} {texts[first['id']]}"
    (tmp_path / "less.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    with pytest.raises(ConfigError, match=r"less\.jsonl has no text for 1 of 30 documents of the index, such as 'd0'"):
        search(world, "failing", "task.texts=true", f"task.corpus={tmp_path}/less.jsonl")


def test_an_index_that_is_not_there_is_named(world):
    with pytest.raises(EncodingError, match="none holds no embeddings; create them with task=encode"):
        search(world, "failing", f"task.index={world}/none")
    with pytest.raises(EncodingError, match=r"holds no embeddings; those of this run are in .*/embeddings$"):
        search(world, "failing", f"task.index={next(world.glob('*/embeddings/meta.json')).parents[1]}")


def test_ids_that_a_trec_file_cannot_hold_are_said_before_the_work(tmp_path):
    """encode says it; search and evaluate refuse before anything is encoded or searched."""
    beir = tmp_path / "beir"
    write_beir(beir, [("d 1", "one"), ("d2", "two")], [("q", "which")], {"q": {"d2": 1}})
    data = ("datasets=[beir]", f"datasets.beir.path={beir}", f"cache_dir={tmp_path / 'cache'}", *TINY)
    train("task=encode", "exp_name=i", *data)
    with pytest.raises(
        ConfigError, match=r"task\.index=.*: the id 'd 1' is empty or has white space, which TREC files"
    ):
        train("task=search", f"task.index={tmp_path / 'cache/i/embeddings'}", "exp_name=i", *data)
    evaluated = ("task=evaluate", "eval_datasets=[beir]", f"eval_datasets.beir.path={beir}", "exp_name=e", *data[2:])
    with pytest.raises(ConfigError, match=r"eval_datasets\.beir: the id 'd 1'"):
        train(*evaluated)
