"""task=idf: frequencies counted by hand, and a file that sentence-transformers' SparseStaticEmbedding reads alike."""

import json
import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

import rankpo
from rankpo.config.compose import compose
from rankpo.errors import ConfigError
from rankpo.models.random_weights import byte_tokenizer
from tests.runs import train

PASSAGES = ["ab", "aab c", "b" * 40 + "z"]
SPARSE = ("model=tiny_bert", "kind=sparse", "model.random.num_hidden_layers=1", "model.passage_max_length=20")


def records(tmp_path, *passages):
    lines = [json.dumps({"id": str(number), "text": text}) for number, text in enumerate(passages)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    return f"task.corpus={tmp_path / 'corpus.jsonl'}"


def written(tmp_path, *overrides, name="idf"):
    folder = train("task=idf", *SPARSE, f"cache_dir={tmp_path}", f"runs_dir={tmp_path}", f"exp_name={name}", *overrides)
    return folder.run_dir / "idf.json"


def by_hand(df, n):
    return math.log(1 + (n - df + 0.5) / (df + 0.5))


def test_frequencies_are_those_counted_by_hand(tmp_path):
    weights = json.loads(written(tmp_path, records(tmp_path, *PASSAGES)).read_text())
    name = lambda letter: byte_tokenizer().tokenize(letter)[0]  # noqa: E731
    assert weights[name("a")] == pytest.approx(by_hand(2, 3)) and weights[name("b")] == pytest.approx(by_hand(3, 3))
    assert weights[name("c")] == pytest.approx(by_hand(1, 3))
    assert weights[name("z")] == weights[name("q")] == pytest.approx(by_hand(0, 3))  # z stands behind the limit
    tokenizer = byte_tokenizer()
    assert {*weights} == {*tokenizer.get_vocab()} - {*tokenizer.all_special_tokens}


def test_the_pool_of_the_training_data_counts_each_passage_once(tmp_path):
    lines = [
        {"query": "x", "positives": ["ab"], "negatives": ["ac"]},
        {"query": "y", "positives": ["ab"], "negatives": ["d"]},
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = ("datasets=jsonl", f"datasets.jsonl.path={tmp_path / 'train.jsonl'}")
    weights = json.loads(written(tmp_path, *data).read_text())
    assert weights["a"] == pytest.approx(by_hand(2, 3)) and weights["b"] == pytest.approx(by_hand(1, 3))


def test_the_file_gives_static_queries_the_values_of_sentence_transformers(tmp_path):
    modules = pytest.importorskip("sentence_transformers.sparse_encoder.modules")
    file = written(tmp_path, records(tmp_path, *PASSAGES))
    static = ("model.query_encoder=static", f"model.query_weights={file}", "model.freeze_query_weights=true")
    run = train(
        *SPARSE, *static, "loss=rankpo", "datasets=[toy_pairs]", "trainer.max_steps=1", f"cache_dir={tmp_path}", "exp_name=static"
    )  # fmt: skip
    model = rankpo.load(run.run_dir / "FINAL")
    theirs = modules.SparseStaticEmbedding.from_json(str(file), byte_tokenizer())
    expected = theirs(theirs.preprocess(["cab", "zebra"]))["sentence_embedding"].detach().numpy()
    assert_allclose(model.encode(["cab", "zebra"], "query").toarray(), expected, rtol=1e-6)
    assert np.count_nonzero(expected[0]) == 3


def test_what_cannot_be_counted_is_refused(tmp_path):
    corpus = records(tmp_path, *PASSAGES)
    file = written(tmp_path, corpus)
    with pytest.raises(ConfigError, match=r"idf.json already exists; set overwrite=true"):
        written(tmp_path, corpus)
    before = file.read_text()
    assert written(tmp_path, records(tmp_path, "a"), "overwrite=true").read_text() != before
    with pytest.raises(ConfigError, match="datasets is not set, and task=idf reads it"):
        written(tmp_path, name="other")
    with pytest.raises(ConfigError, match="needs kind="):
        train("task=idf", "model=tiny_pythia", "kind=causal_lm", corpus, f"cache_dir={tmp_path}")
    with pytest.raises(ConfigError, match=r"task\.corpus: nowhere\.jsonl does not exist"):
        compose(["task=idf", *SPARSE, "task.corpus=nowhere.jsonl"])
