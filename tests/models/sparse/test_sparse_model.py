"""Sparse models equal transformers' own logits, pooled, for every architecture; static queries; stored form."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from rankpo.errors import ConfigError
from rankpo.models.engine.sparse_vectors import compact, of_csr, to_csr
from rankpo.models.random_weights import byte_tokenizer
from rankpo.models.sparse.config import SparseKind
from rankpo.models.sparse.inputs import SparseInputs
from rankpo.models.sparse.model import SparseModel
from rankpo.models.sparse.settings import SparseSettings
from tests.models.families import LENGTHS, sequences
from tests.models.sparse.builders import MASKED, TEXTS, masked_backbone, sparse_model


def alone(family, ids, pooling, activation):
    """[V] of one text [T] by transformers' own forward pass."""
    logits = masked_backbone(family, attention="eager")(input_ids=ids[None]).logits[0]
    values = torch.log1p(torch.relu(logits))
    values = torch.log1p(values) if activation == "log1p_relu" else values
    return values.amax(0) if pooling == "max" else values.sum(0)


@pytest.mark.parametrize("family", MASKED)
def test_equal_to_the_architectures_own_logits(family):
    texts = sequences()
    model = sparse_model(family, attention="eager" if family == "mpnet" else "sdpa")
    expected = torch.stack([alone(family, part, "max", "relu") for part in texts.input_ids.split([*LENGTHS])])
    assert (expected > 0).any(1).all() and (expected == 0).any()
    assert_close(model(texts), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("layout", "chunk_tokens"), [("packed", 16), ("padded", 30), ("padded", None)])
@pytest.mark.parametrize(("pooling", "activation"), [("sum", "relu"), ("max", "log1p_relu"), ("sum", "log1p_relu")])
def test_every_form_in_every_layout(layout, chunk_tokens, pooling, activation):
    texts = sequences()
    model = sparse_model(layout=layout, chunk_tokens=chunk_tokens, pooling=pooling, activation=activation)
    expected = torch.stack([alone("bert", part, pooling, activation) for part in texts.input_ids.split([*LENGTHS])])
    assert_close(model(texts), expected, rtol=1e-4, atol=1e-5)


def test_gradients_reach_all_weights():
    model = sparse_model().train()
    model(sequences()).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters() if p.requires_grad)


def test_scores_by_hand():
    """Scores of a batch, of all pairs and of pairs one by one are the same inner products."""
    model = sparse_model()
    rows = model(model.inputs.sequences_of(TEXTS, "candidate"))
    every = rows.double() @ rows.double().T
    stored = model.encode_vectors(model.inputs.sequences_of(TEXTS, "candidate"))
    assert_close(model.stored_similarity(stored, stored).double(), every, rtol=1e-5, atol=1e-5)
    assert_close(model.stored_paired(stored, stored).double(), every.diagonal(), rtol=1e-5, atol=1e-5)
    assert stored.counts.tolist() == (rows > 0).sum(1).tolist()


def test_stored_form_and_compressed_rows_there_and_back():
    weights = torch.tensor([[0, 1.5, 0, 2.5, 0.5], [0, 0, 0, 0, 0], [3.0, 0, 0, 0, 0]])
    stored = compact(weights)
    assert stored.counts.tolist() == [3, 0, 1]
    np.testing.assert_array_equal(to_csr(stored, 5).toarray(), weights.numpy())
    back = of_csr(to_csr(stored, 5))
    assert_close(back.rows, stored.rows) and back.counts.tolist() == [3, 0, 1]
    assert to_csr(compact(weights, 2), 5).toarray().tolist()[0] == [0, 1.5, 0, 2.5, 0]
    assert to_csr(stored.select(torch.tensor([2, 1, 0])), 5).toarray().tolist() == weights[[2, 1, 0]].tolist()


def test_encode_terms_and_pruning():
    model = sparse_model()
    rows = model.encode(TEXTS)
    assert_close(
        torch.from_numpy(rows.toarray()), model(model.inputs.sequences_of(TEXTS, "candidate")), rtol=1e-4, atol=1e-5
    )
    terms = model.terms("soil")
    assert list(terms.values()) == sorted(terms.values(), reverse=True) and len(terms) == rows[[0]].nnz
    pruned = sparse_model(max_active=4)
    assert (np.diff(pruned.encode(TEXTS).indptr) == 4).all()
    assert pruned.terms("soil") == pytest.approx(dict(list(terms.items())[:4]), rel=1e-5)
    with pytest.raises(ValueError, match="role must be query or passage, got 'other'"):
        model.encode(["x"], role="other")
    with pytest.raises(TypeError, match=r"texts\[1\] must be a string, got int"):
        model.encode(["x", 3])


def test_static_queries_are_their_tokens_with_a_weight_each():
    model = sparse_model(query_encoder="static", query_prompt="q: ")
    with torch.no_grad():
        model.query_weights.copy_(torch.arange(model.dim) / 7)
    found = model.encode(["aab", ""], role="query").toarray()
    for row, text in enumerate(("q: aab", "q: ")):
        ids = set(model.tokenizer(text, add_special_tokens=False)["input_ids"])
        expected = np.array([number / 7 if number in ids else 0 for number in range(model.dim)])
        np.testing.assert_allclose(found[row], expected, rtol=1e-6)
    plain = sparse_model()
    assert_close(torch.from_numpy(model.encode(TEXTS).toarray()), torch.from_numpy(plain.encode(TEXTS).toarray()))


def test_static_queries_and_passages_in_one_call_and_alone():
    """Every call has a gradient for every weight, also a call of queries alone: processes wait for it otherwise."""
    model = sparse_model(query_encoder="static")
    inputs = model.inputs
    queries, texts = inputs.sequences_of(["ab", "c"], "query"), inputs.sequences_of(["soil", "rain"], "candidate")
    for part in (queries, texts):
        model.zero_grad()
        model(part).sum().backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    together = type(queries)(
        torch.cat([texts.input_ids, queries.input_ids]),
        torch.cat([texts.lengths, queries.lengths]),
        prefixes=torch.cat([texts.prefixes, queries.prefixes]),
    )
    assert_close(model(together), torch.cat([model(texts), model(queries)]), rtol=1e-4, atol=1e-5)


def test_frozen_weights_of_static_queries():
    model = sparse_model(query_encoder="static", freeze_query_weights=True)
    assert model.query_weights is not None and not model.query_weights.requires_grad


def test_lengths_above_the_positions_are_refused():
    with pytest.raises(ConfigError, match=r"model.passage_max_length=99, but the model has 80 positions"):
        sparse_model(passage_max_length=99)
    inputs = SparseInputs(byte_tokenizer(), SparseSettings(query_encoder="static", query_max_length=500))
    with pytest.raises(ConfigError, match=r"passage_max_length=256"):
        SparseModel(masked_backbone(), inputs)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"pooling": "mean"}, "pooling must be one of max, sum, got 'mean'"),
        ({"activation": "gelu"}, "activation must be one of relu, log1p_relu, got 'gelu'"),
        ({"query_encoder": "idf"}, "query_encoder must be one of same, static, got 'idf'"),
        ({"max_active": 0}, "max_active must be >= 1 or null, got 0"),
        ({"query_max_length": 2}, "query_max_length must be >= 4 tokens, got 2"),
        ({"query_weights": "none.json"}, "query_weights=none.json: no such file"),
    ],
)
def test_settings_are_checked(keys, message):
    with pytest.raises(ValueError, match=message):
        SparseKind(name_or_path="x", **keys)
