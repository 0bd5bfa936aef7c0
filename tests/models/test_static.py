"""StaticEmbedding of sentence-transformers and model2vec: the same vectors before and after training, and in FINAL."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import rankpo
from rankpo.errors import ConfigError, LoadingError
from tests.runs import train
from tests.tokenizers import bert

st = pytest.importorskip("sentence_transformers")
TEXTS = ["a red cat", "", "stones and a bridge over them, and a bridge over that", "cat"]
PROMPTS = {"query": "query: ", "document": "passage: "}


def static_of(folder, *, dense=None, normalize=True, similarity="cosine", truncation=None, prompts=PROMPTS):
    """A folder of sentence-transformers with random token embeddings over a WordPiece vocabulary."""
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, StaticEmbedding

    torch.manual_seed(4)
    tokenizer = bert().backend_tokenizer
    if truncation is not None:
        tokenizer.enable_truncation(truncation)
    modules = [StaticEmbedding(tokenizer, embedding_dim=12)]
    if dense is not None:
        modules.append(Dense(12, dense, activation_function=torch.nn.Tanh()))
    if normalize:
        modules.append(Normalize())
    made = st.SentenceTransformer(modules=modules, device="cpu", similarity_fn_name=similarity, prompts=prompts)
    made.save_pretrained(str(folder))
    return folder


def check_equal(folder, texts=TEXTS):
    ours, theirs = rankpo.load(folder, "cpu"), st.SentenceTransformer(str(folder), device="cpu")
    np.testing.assert_allclose(ours.encode(texts, role="query"), theirs.encode_query(texts), atol=1e-6)
    np.testing.assert_allclose(ours.encode(texts), theirs.encode_document(texts), atol=1e-6)
    return ours


def test_vectors_are_equal_before_and_after_training(tmp_path):
    folder = static_of(tmp_path / "static", dense=6)
    check_equal(folder)
    keys = (f"model.load_from={folder}", "kind=embedding", "loss=contrastive", "datasets=toy_contrastive")
    train(*keys, f"cache_dir={tmp_path}", "exp_name=run", "trainer.max_steps=2", "optimizer.lr=0.01")
    final = tmp_path / "run" / "FINAL"
    check_equal(final)
    before, after = load_file(folder / "model.safetensors"), load_file(final / "model.safetensors")
    assert (before["embedding.weight"] - after["embedding.weight"]).abs().max() > 1e-3, "the table is trained"
    card = (final / "README.md").read_text()
    assert "AutoModel" not in card and "SentenceTransformer(" in card
    assert not (final / "sentence_bert_config.json").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"normalize": False, "similarity": "dot", "prompts": {}},
        pytest.param({"truncation": 4}, marks=pytest.mark.slow),
        pytest.param({"dense": 20}, marks=pytest.mark.slow),
    ],
)
def test_other_folders(tmp_path, options):
    check_equal(static_of(tmp_path / "static", **options))


@pytest.mark.parametrize("shared", [False, True])
def test_model2vec_stores_the_table_under_other_names(tmp_path, shared):
    """One row for each token, or rows that tokens share, with a weight of each token."""
    folder = static_of(tmp_path / "static")
    path = folder / "model.safetensors"
    table = load_file(path)["embedding.weight"]
    tensors = {"embeddings": table}
    if shared:
        tensors["mapping"] = torch.arange(len(table)) // 2
        tensors["weights"] = torch.rand(len(table), dtype=torch.float64)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    check_equal(folder)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("model.pooling=max",),
            "model.pooling=max, but static token embeddings have no layers .* set pooling to mean",
        ),
        (("kind=late_interaction",), "holds static token embeddings, without layers; only kind=embedding reads them"),
        pytest.param(("kind=sparse",), "only kind=embedding reads them", marks=pytest.mark.slow),
        (("model.prior_layers=[0]",), r"model.prior_layers=\[0\], but static token embeddings"),
    ],
)
def test_what_it_cannot_compute(tmp_path, overrides, message):
    folder = static_of(tmp_path / "static")
    keys = (f"model.load_from={folder}", "kind=embedding", "loss=contrastive", "datasets=toy_contrastive")
    with pytest.raises((ConfigError, LoadingError), match=message):
        train(*keys, *overrides, f"cache_dir={tmp_path}", "exp_name=run")


def test_the_oldest_layout_has_a_folder_for_each_module(tmp_path):
    folder = static_of(tmp_path / "static")
    (folder / "0_StaticEmbedding").mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).rename(folder / "0_StaticEmbedding" / name)
    modules = folder / "modules.json"
    modules.write_text(modules.read_text().replace('"path": ""', '"path": "0_StaticEmbedding"', 1))
    check_equal(folder)


def test_damaged_folders_are_named(tmp_path):
    folder = static_of(tmp_path / "static")
    save_file({"weight": torch.zeros(3, 2)}, folder / "model.safetensors")
    with pytest.raises(LoadingError, match=r"holds the tensors weight; a StaticEmbedding has embedding\.weight"):
        rankpo.load(tmp_path / "static", "cpu")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(LoadingError, match=r"has no model\.safetensors; rankpo does not open pickled weights"):
        rankpo.load(tmp_path / "static", "cpu")


def test_a_router_of_two_models_names_the_one_to_load(tmp_path):
    """Queries by token embeddings, passages by a transformer: no single model has both."""
    from sentence_transformers.sentence_transformer.modules import Pooling, Router, StaticEmbedding, Transformer

    from tests.models.families import backbone

    plain = tmp_path / "bert"
    backbone("bert", vocab_size=bert().vocab_size).save_pretrained(plain)
    bert().save_pretrained(plain)
    queries, passages = StaticEmbedding(bert().backend_tokenizer, embedding_dim=24), Transformer(str(plain))
    router = Router.for_query_document([queries], [passages, Pooling(24)])
    st.SentenceTransformer(modules=[router], device="cpu").save_pretrained(str(tmp_path / "routed"))
    with pytest.raises((ConfigError, LoadingError), match=r"modules Router; .* set model\.load_from=") as error:
        rankpo.load(tmp_path / "routed", "cpu")
    named = str(error.value).rpartition("model.load_from=")[2].split()[0]
    assert rankpo.load(named, "cpu").encode(TEXTS).shape == (4, 24)
