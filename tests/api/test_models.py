"""The methods of loaded models beside ours: those of sentence-transformers, saving, and the upload to a hub."""

from __future__ import annotations

import huggingface_hub.constants
import numpy as np
import pytest

import rankpo
from rankpo.config.compose import compose
from rankpo.errors import ConfigError
from tests.api.hub import TOKEN, running
from tests.runs import CONTRASTIVE, train

TEXTS = ["a red cat", "", "a red cat", "stones " * 9]


@pytest.fixture(scope="module")
def final(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    train(*CONTRASTIVE, "trainer.max_steps=1", "model.query_prompt='find: '", f"cache_dir={folder}", "exp_name=e")
    return folder / "e" / "FINAL"


def test_names_of_sentence_transformers(final):
    model = rankpo.load(final)
    np.testing.assert_array_equal(model.encode_query(TEXTS), model.encode(TEXTS, "query"))
    np.testing.assert_array_equal(model.encode_document(TEXTS), model.encode(TEXTS, "passage"))
    assert not np.allclose(model.encode_query("a cat"), model.encode_document("a cat"))  # the prompt
    assert model.encode_query(TEXTS, convert_to_tensor=True).shape == (4, 32)


def test_rank_and_predict_of_an_embedding_model_agree_with_sentence_transformers(final):
    library = pytest.importorskip("sentence_transformers")
    theirs = library.SentenceTransformer(str(final), device="cpu")
    expected = (theirs.encode_query(["cat"]) @ theirs.encode_document(TEXTS).T)[0]
    model = rankpo.load(final)
    np.testing.assert_allclose(model.predict([("cat", text) for text in TEXTS]), expected, atol=1e-5)
    assert model.predict(("cat", TEXTS[0])).shape == ()
    ranked = model.rank("cat", TEXTS, top_k=3, return_documents=True)
    assert [item["corpus_id"] for item in ranked] == sorted(range(4), key=lambda index: -expected[index])[:3]
    assert all(item["text"] == TEXTS[item["corpus_id"]] for item in ranked)
    assert list(model.rank("cat", TEXTS)[0]) == ["corpus_id", "score"]
    assert model.rank("cat", []) == [] and model.predict([]).shape == (0,)


def test_a_reranker_ranks_as_cross_encoders_do(tmp_path):
    library = pytest.importorskip("sentence_transformers")
    options = ("model=tiny_bert", "kind=reranker", "loss=softmax", "datasets=[toy_graded]", "trainer.max_steps=1")
    folder = train(*options, f"cache_dir={tmp_path}", "exp_name=r").run_dir / "FINAL"
    theirs = library.CrossEncoder(str(folder), device="cpu").rank("cat", TEXTS[2:], return_documents=True)
    ours = rankpo.load(folder).rank("cat", TEXTS[2:], return_documents=True)
    assert [(item["corpus_id"], item["text"]) for item in ours] == [
        (item["corpus_id"], item["text"]) for item in theirs
    ]
    np.testing.assert_allclose([item["score"] for item in ours], [float(item["score"]) for item in theirs], atol=1e-5)
    scores = rankpo.load(folder).predict([("cat", text) for text in TEXTS])
    np.testing.assert_allclose(scores, rankpo.load(folder).compute_score([("cat", text) for text in TEXTS]), atol=1e-7)


@pytest.mark.parametrize(
    ("pairs", "error"),
    [("a text", TypeError), ([("a", "b"), ("a",)], TypeError), ([("a", 3)], TypeError), ([(" ", "b")], ValueError)],
)
def test_what_is_no_pair(final, pairs, error):
    with pytest.raises(error, match="pair"):
        rankpo.load(final).predict(pairs)


def test_save_writes_what_load_reads(final, tmp_path):
    model = rankpo.load(final)
    again = rankpo.load(model.save(tmp_path / "copy"))
    np.testing.assert_array_equal(again.encode(TEXTS), model.encode(TEXTS))
    assert again.description["loss"] == "ContrastiveLoss" and again.description == model.description
    with pytest.raises(ConfigError, match="exists already"):
        model.save(tmp_path / "copy")


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with running() as server:
        yield server


def test_push_to_hub(final, hub, tmp_path):
    model = rankpo.load(final)
    for _ in range(2):  # the second upload finds the repository
        assert model.push_to_hub("me/cats", endpoint=hub.url) == f"{hub.url}/me/cats"
    assert hub.private == {"me/cats": True} and hub.header["pipeline_tag"] == "sentence-similarity"
    for name, content in hub.files["me/cats"].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    np.testing.assert_array_equal(rankpo.load(tmp_path).encode(TEXTS), model.encode(TEXTS))


def test_task_push(final, hub, tmp_path):
    """The same by a task, of a run directory, with licence and data sets in the card."""
    card = ("task.license=apache-2.0", "task.datasets=[me/cats-data]", f"task.endpoint={hub.url}")
    train("task=push", f"task.folder={final.parent}", "task.repo=me/pushed", "task.private=false", *card)
    assert hub.private == {"me/pushed": False}
    assert (hub.header["license"], hub.header["datasets"]) == ("apache-2.0", ["me/cats-data"])
    for name, content in hub.files["me/pushed"].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    np.testing.assert_array_equal(
        rankpo.load(tmp_path).encode(TEXTS), rankpo.load(final).encode(TEXTS)
    )  # and its manifest
    with pytest.raises(ConfigError, match="is no run with a FINAL"):
        compose(["task=push", f"task.folder={tmp_path}/none", "task.repo=me/x"])


def test_what_a_hub_refuses(final, hub, monkeypatch):
    model = rankpo.load(final)
    with pytest.raises(ConfigError, match="a/b/c: Repo id must be"):
        model.push_to_hub("a/b/c", endpoint=hub.url)
    with pytest.raises(ConfigError, match="no connection to the hub"):
        model.push_to_hub("me/cats", endpoint="http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(ConfigError, match=r"refused the upload \(401: .*set HF_TOKEN"):
        model.push_to_hub("me/cats", endpoint=hub.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE=1 forbids uploads"):
        model.push_to_hub("me/cats", endpoint=hub.url)


def test_a_trained_model_in_memory_is_saved_too(tmp_path):
    kind = compose(["model=tiny_bert", "loss=contrastive"]).model
    model = kind.build(kind.open_inputs(print), print)
    np.testing.assert_allclose(rankpo.load(model.save(tmp_path / "m")).encode("a"), model.eval().encode("a"), atol=1e-6)
