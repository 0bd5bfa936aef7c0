"""Folders of sparse models: sentence-transformers' SparseEncoder loads ours, and we load theirs, with equal vectors."""

import json
import logging

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import rankpo
from rankpo.config.compose import compose
from rankpo.errors import ConfigError
from rankpo.models.embedding.config import EmbeddingKind
from rankpo.models.hybrid.config import HybridKind
from rankpo.models.loading import LoadingError
from rankpo.models.saving import save
from rankpo.models.sparse.config import SparseKind
from rankpo.models.sparse.saving import SparseFolder
from tests.models.sparse.builders import TEXTS, masked_backbone, sparse_model

pytest.importorskip("sentence_transformers")
LENGTHS = {"query_max_length": 20, "passage_max_length": 20}
FORMS = {
    "plain": {},
    "prompts": {"query_prompt": "ask: ", "passage_prompt": "text: "},
    "sum and two logarithms": {"pooling": "sum", "activation": "log1p_relu", "max_active": 7},
    "static": {"query_encoder": "static", "query_prompt": "q: "},
    "frozen static": {"query_encoder": "static", "freeze_query_weights": True},
}


def dense(rows):
    return rows.to_dense().numpy()


def with_query_weights(model):
    if model.query_weights is not None:
        with torch.no_grad():
            model.query_weights.copy_(torch.linspace(0.5, 3, model.dim))
    return model


@pytest.mark.parametrize("form", FORMS)
def test_sentence_transformers_loads_ours_and_we_load_both(tmp_path, form):
    from sentence_transformers import SparseEncoder

    model = with_query_weights(sparse_model(**{**LENGTHS, **FORMS[form]}))
    assert save(tmp_path / "ours", model, SparseFolder(), {}) <= 1e-5
    theirs = SparseEncoder(str(tmp_path / "ours"), device="cpu")
    theirs.save_pretrained(str(tmp_path / "theirs"))
    for folder in ("ours", "theirs"):
        again = rankpo.load(tmp_path / folder, "cpu")
        assert again.kind == "sparse" and again.settings == model.settings
        for role, encode in (("query", theirs.encode_query), ("passage", theirs.encode_document)):
            expected = model.encode(TEXTS, role).toarray()
            assert_allclose(again.encode(TEXTS, role).toarray(), expected, atol=1e-5)
            assert_allclose(dense(encode(TEXTS)), expected, atol=1e-5)
    scores = theirs.similarity(theirs.encode_query(TEXTS), theirs.encode_document(TEXTS))
    assert_allclose(scores.numpy(), model.encode(TEXTS, "query") @ model.encode(TEXTS).toarray().T, atol=1e-4)


def their_folder(tmp_path, *modules, **options):
    """A SparseEncoder of their own making."""
    from sentence_transformers import SparseEncoder

    logging.disable(logging.WARNING)
    model = SparseEncoder(modules=[*modules], **options) if modules else SparseEncoder(str(tmp_path / "mlm"), **options)
    logging.disable(logging.NOTSET)
    model.save_pretrained(str(tmp_path / "theirs"))
    return model


@pytest.fixture
def checkpoint(tmp_path):
    """A masked language model as transformers saves it."""
    model = sparse_model()
    model.tokenizer.model_max_length = 30
    masked_backbone().save_pretrained(tmp_path / "mlm")
    model.tokenizer.save_pretrained(tmp_path / "mlm")
    return tmp_path / "mlm"


def test_their_new_form_is_read(tmp_path, checkpoint):
    theirs = their_folder(tmp_path, prompts={"query": "q: ", "document": "d: "})
    ours = rankpo.load(tmp_path / "theirs", "cpu")
    assert ours.settings.passage_max_length == 30 and ours.settings.query_prompt == "q: "
    for role, encode in (("query", theirs.encode_query), ("passage", theirs.encode_document)):
        assert_allclose(ours.encode(TEXTS, role).toarray(), dense(encode(TEXTS)), atol=1e-5)


def router(checkpoint, query_modules=None, **options):
    from sentence_transformers.sparse_encoder.modules import (
        Router,
        SparseStaticEmbedding,
        SpladePooling,
        Transformer,
    )

    tokenizer = sparse_model().tokenizer
    tokenizer.model_max_length = 11
    static = SparseStaticEmbedding(tokenizer=tokenizer, weight=torch.linspace(0, 2, len(tokenizer)), **options)
    transformer = Transformer(str(checkpoint), transformer_task="fill-mask")
    documents = [transformer, SpladePooling("max", activation_function="log1p_relu")]
    return Router.for_query_document(query_modules=query_modules or [static], document_modules=documents)


def test_their_router_is_read(tmp_path, checkpoint):
    theirs = their_folder(tmp_path, router(checkpoint, frozen=True))
    ours = rankpo.load(tmp_path / "theirs", "cpu")
    settings = ours.settings
    assert (settings.query_max_length, settings.passage_max_length) == (11, 30) and settings.freeze_query_weights
    for role, encode in (("query", theirs.encode_query), ("passage", theirs.encode_document)):
        texts = [*TEXTS, "a query that has more than eleven tokens"]
        assert_allclose(ours.encode(texts, role).toarray(), dense(encode(texts)), atol=1e-5)


def test_a_plain_checkpoint_is_a_sparse_model_by_its_kind(checkpoint):
    from sentence_transformers import SparseEncoder

    kind = SparseKind(name_or_path=str(checkpoint), query_max_length=30, passage_max_length=30)
    ours = kind.build(kind.open_inputs(print), print).eval()
    theirs = SparseEncoder(str(checkpoint), device="cpu")
    assert_allclose(ours.encode(TEXTS).toarray(), dense(theirs.encode(TEXTS)), atol=1e-5)


def edited(folder, file, **keys):
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


REFUSED = [
    ("1_SpladePooling/config.json", {"chunking": 3}, "no 'chunking'|chunking"),
    ("1_SpladePooling/config.json", {"pooling_strategy": "mean"}, "pooling must be one of max, sum"),
    ("sentence_bert_config.json", {"query_length": 7, "strange": 1}, "strange"),
    ("sentence_bert_config.json", {"transformer_task": "feature-extraction"}, "transformer_task"),
    ("config_sentence_transformers.json", {"similarity_fn_name": "cosine"}, "similarity cosine; .* dot"),
    ("config_sentence_transformers.json", {"unheard": 1}, "unheard"),
]


@pytest.mark.parametrize(
    ("file", "keys", "message"), REFUSED, ids=[f"{file}-{[*keys][-1]}" for file, keys, _ in REFUSED]
)
def test_unknown_settings_are_refused_by_name(tmp_path, checkpoint, file, keys, message):
    their_folder(tmp_path)
    edited(tmp_path / "theirs", file, **keys)
    with pytest.raises((ConfigError, LoadingError), match=message):
        rankpo.load(tmp_path / "theirs", "cpu")


def test_other_modules_are_refused_by_name(tmp_path, checkpoint):
    from sentence_transformers.sparse_encoder.modules import SpladePooling, Transformer

    shared = [Transformer(str(checkpoint), transformer_task="fill-mask"), SpladePooling()]
    their_folder(tmp_path, router(checkpoint, query_modules=shared))
    with pytest.raises(
        ConfigError, match=r"queries use the modules Transformer, SpladePooling; .* SparseStaticEmbedding"
    ):
        rankpo.load(tmp_path / "theirs", "cpu")


def test_another_tokenizer_for_queries_is_refused(tmp_path, checkpoint):
    their_folder(tmp_path, router(checkpoint))
    path = tmp_path / "theirs" / "query_0_SparseStaticEmbedding" / "tokenizer.json"
    edited(path.parent, path.name, normalizer={"type": "Lowercase"})
    with pytest.raises(ConfigError, match="hold different tokenizers"):
        rankpo.load(tmp_path / "theirs", "cpu")


def kind_of(folder, **keys):
    kind = SparseKind(name_or_path=str(folder), query_max_length=30, passage_max_length=30, **keys)
    return kind.build(kind.open_inputs(print), print)


def test_a_file_of_weights_for_static_queries(tmp_path, checkpoint):
    file = tmp_path / "idf.json"
    file.write_text(json.dumps({"a": 2.5, "b": 0.25, "no such token": 3}))
    model = kind_of(checkpoint, query_encoder="static", query_weights=str(file))
    assert model.terms("abc", "query") == {"a": 2.5, "b": 0.25}
    for text, message in (
        ("[1]", "JSON object of tokens"),
        ("{", "is not JSON"),
        ('{"no such token": 1}', "names no token"),
    ):
        file.write_text(text)
        with pytest.raises(LoadingError, match=message):
            kind_of(checkpoint, query_encoder="static", query_weights=str(file))
    with pytest.raises(ConfigError, match=r"model.query_weights needs model.query_encoder=static"):
        kind_of(checkpoint, query_weights=str(file))


def test_a_checkpoint_without_a_head_is_refused_or_gets_a_new_one(tmp_path, checkpoint):
    masked_backbone().base_model.save_pretrained(tmp_path / "body")
    sparse_model().tokenizer.save_pretrained(tmp_path / "body")
    with pytest.raises(LoadingError, match=r"has no masked-language head .* model.new_head=true"):
        kind_of(tmp_path / "body")
    model = kind_of(tmp_path / "body", new_head=True)
    assert np.isfinite(model.encode(TEXTS).data).all()


def test_decoders_are_refused():
    with pytest.raises(ConfigError, match="is a decoder, but kind=sparse needs an encoder"):
        kind = SparseKind(random={"model_type": "llama"})
        kind.open_inputs(print)


def test_an_embedding_model_is_a_start(tmp_path, checkpoint):
    """Ours, or one of sentence-transformers: the encoder and the prompts, with the head of the files or a new one."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    transformer = Transformer(str(checkpoint), max_seq_length=30)
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), pooling_mode="cls"), Normalize()]
    prompts = {"query": "find: ", "document": "text: "}
    SentenceTransformer(modules=modules, prompts=prompts, device="cpu").save_pretrained(str(tmp_path / "dense"))
    ours = EmbeddingKind(name_or_path=str(tmp_path / "dense"))
    dense = ours.build(ours.open_inputs(print), print)
    dense.save(tmp_path / "ours")
    for name in ("dense", "ours"):
        for kind in (SparseKind, HybridKind):
            new = {"new_head": True} if kind is SparseKind else {"new_layers": True}
            said = []
            made = kind(load_from=str(tmp_path / name), query_max_length=20, passage_max_length=20, **new)
            model = made.build(made.open_inputs(said.append), said.append)
            assert (model.settings.query_prompt, model.settings.passage_prompt) == ("find: ", "text: ")
            assert any("holds an embedding model: training starts from its encoder" in line for line in said)
            embedded = model.base.get_input_embeddings().weight
            assert torch.equal(embedded, dense.base.get_input_embeddings().weight)
    words = [
        "loss=contrastive",
        "kind=sparse",
        "model=minilm",
        f"model.load_from={tmp_path / 'ours'}",
        "datasets=[toy_pairs]",
    ]
    assert compose(words).model.kind == "sparse"
    with pytest.raises(LoadingError, match=r"has no masked-language head .* or set model.new_head=true"):
        made = SparseKind(load_from=str(tmp_path / "ours"))
        made.build(made.open_inputs(print), print)
