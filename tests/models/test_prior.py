"""The prior of a passage: s(q, p) + λ·t(p) as one more dimension, in rankpo, in its folders and in sentence-transformers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import float64
from torch.autograd import gradcheck
from torch.testing import assert_close

import rankpo
from rankpo.errors import ConfigError
from rankpo.models.embedding.config import EmbeddingKind
from rankpo.models.embedding.inputs import EmbeddingInputs
from rankpo.models.embedding.model import EmbeddingModel
from rankpo.models.embedding.prior import FILE, Prior
from rankpo.models.embedding.settings import EmbeddingSettings
from rankpo.models.engine.dry_run import Pass, activation_bytes
from rankpo.models.loading import LoadingError
from rankpo.models.random_weights import byte_tokenizer
from rankpo.storage.folders import MANIFEST
from rankpo.types import Batch
from tests.models.families import backbone
from tests.models.saved import saved

TEXTS = ["soil", "a field of wheat in the rain", "ploughing", "x"]
LENGTHS = {"query_max_length": 20, "passage_max_length": 20}  # sentence-transformers has one length for both


def model_of(family="bert", *, layout="auto", **settings):
    """A model whose prior has random weights."""
    keys = {**LENGTHS, "prior_layers": [0, 2], "prior_weight": 0.5, **settings}
    model = EmbeddingModel(
        backbone(family), EmbeddingInputs(byte_tokenizer(), EmbeddingSettings(**keys)), layout=layout
    ).eval()
    if model.prior is not None:
        torch.manual_seed(5)
        torch.nn.init.normal_(model.prior.weight)
    return model


def test_value_by_hand():
    """Two layers of two dimensions: t = 1·3 + 2·4 + 5·1 + 0·9."""
    prior = Prior([1, 3], 2)
    assert prior(torch.tensor([[3.0, 4, 1, 9]])).tolist() == [0]  # a new prior changes no score
    with torch.no_grad():
        prior.weight.copy_(torch.tensor([[1.0, 2], [5, 0]]))
    assert prior(torch.tensor([[3.0, 4, 1, 9], [0, 0, 1, 1]])).tolist() == [16, 5]


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("family", ["bert", "llama", "modernbert", "gpt_neox"])
def test_a_passage_has_the_prior_of_transformers_own_hidden_states(family, layout):
    model = model_of(family, layout=layout)
    bare = model_of(family, layout=layout, prior_layers=[])
    passages, queries = model.encode(TEXTS), model.encode(TEXTS, role="query")
    assert passages.shape == (4, 25) and model.dim == 25
    np.testing.assert_allclose(passages[:, :24], bare.encode(TEXTS), atol=1e-6)
    np.testing.assert_allclose(queries[:, :24], bare.encode(TEXTS, role="query"), atol=1e-6)
    assert queries[:, 24].tolist() == [1, 1, 1, 1]
    plain, weight = backbone(family, attention="eager"), model.prior.weight.detach()
    for text, vector in zip(TEXTS, passages, strict=True):
        ids = model.inputs.sequences_of([text], "candidate").input_ids[None]
        states = [state.detach() for state in plain(ids, output_hidden_states=True).hidden_states]
        expected = sum(float(states[layer][0].mean(0) @ weight[k]) for k, layer in enumerate((0, 2)))
        assert vector[24] == pytest.approx(0.5 * expected, abs=2e-5)


def test_one_text_in_both_roles_is_two_sequences():
    """Otherwise a text that is a query and a candidate of one update would have one vector for both."""
    assert not model_of().inputs.roles_alike
    assert model_of(prior_layers=[]).inputs.roles_alike


def test_score_is_the_sum_of_its_parts():
    model = model_of()
    sequences = model.inputs.sequences_of(TEXTS[:1], "query")
    passages = model.inputs.sequences_of(TEXTS[1:], "candidate")
    joined = replace(
        sequences,
        input_ids=torch.cat([sequences.input_ids, passages.input_ids]),
        lengths=torch.cat([sequences.lengths, passages.lengths]),
        prefixes=torch.cat([sequences.prefixes, passages.prefixes]),
    )
    batch = Batch(joined, torch.tensor([0]), torch.tensor([[1, 2, 3]]), None, ("a",))  # type: ignore[arg-type]
    output = model(joined)
    topic, priors = model.score_parts(output, batch)
    assert_close(model.score(output, batch), topic + 0.5 * priors)
    assert float(priors.detach().abs().min()) > 1e-3
    vectors = [model.encode(TEXTS[:1], role="query"), model.encode(TEXTS[1:])]
    np.testing.assert_allclose(vectors[0] @ vectors[1].T, model.score(output, batch).detach().numpy(), atol=1e-6)


def test_gradient_in_float64():
    prior = Prior([0, 1], 3).double()

    def value(features, weight):
        return torch.func.functional_call(prior, {"weight": weight}, (features,))

    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4, 6, dtype=float64, generator=generator, requires_grad=True)
    weight = torch.randn(2, 3, dtype=float64, generator=generator, requires_grad=True)
    assert gradcheck(value, (features, weight))


FORMS = {
    "two layers": {},
    "one layer": {"prior_layers": [1]},
    "prompts left out": {"query_prompt": "q: ", "passage_prompt": "text: ", "include_prompt": False},
    "prompts": {"query_prompt": "q: ", "passage_prompt": "text: "},
    "cut": {"truncate_dim": 7},
    "cut, any length": {"truncate_dim": 7, "normalize": False},
    "first token, dense": {"pooling": "cls", "layers": [{"type": "Dense", "out_features": 9}]},
    "two ways of pooling": {"pooling": "max+mean", "normalize": False},
}


@pytest.mark.parametrize("form", FORMS)
def test_folder_gives_the_same_vectors_in_rankpo_and_in_sentence_transformers(tmp_path, form):
    model = model_of(**FORMS[form])
    assert saved(model, tmp_path / "FINAL") < 1e-6
    again = rankpo.load(tmp_path / "FINAL", "cpu")
    assert torch.equal(again.prior.weight, model.prior.weight)
    assert again.settings == model.settings
    st = pytest.importorskip("sentence_transformers")
    theirs = st.SentenceTransformer(str(tmp_path / "FINAL"), device="cpu")
    for role, encode in (("query", theirs.encode_query), ("passage", theirs.encode_document)):
        ours = model.encode(TEXTS, role=role)
        np.testing.assert_array_equal(again.encode(TEXTS, role=role), ours)
        np.testing.assert_allclose(encode(TEXTS, batch_size=3), ours, atol=1e-5, rtol=0)
    assert theirs.similarity_fn_name == "dot"
    scores = theirs.similarity(theirs.encode_query(TEXTS), theirs.encode_document(TEXTS)).numpy()
    np.testing.assert_allclose(scores, model.encode(TEXTS, role="query") @ model.encode(TEXTS).T, atol=1e-5)


def test_decoders_too(tmp_path):
    st = pytest.importorskip("sentence_transformers")
    model = model_of("llama", pooling="last")
    saved(model, tmp_path / "FINAL")
    theirs = st.SentenceTransformer(str(tmp_path / "FINAL"), device="cpu")
    np.testing.assert_allclose(theirs.encode_document(TEXTS), model.encode(TEXTS), atol=1e-5)


def built(folder, *, explicit=(), **keys):
    said: list[str] = []
    kind = EmbeddingKind(load_from=str(folder), **keys)
    return kind.build(kind.open_inputs(said.append, explicit), said.append), said


def test_a_prior_is_added_to_a_folder_without_one_and_kept_from_one_that_has_it(tmp_path):
    saved(model_of(prior_layers=[]), tmp_path / "plain")
    new, _ = built(tmp_path / "plain", prior_layers=[1], prior_weight=0.2)
    assert new.prior is not None and new.settings.prior_weight == 0.2 and not new.prior.weight.any()
    saved(model_of(), tmp_path / "with")
    kept, _ = built(tmp_path / "with")
    assert kept.settings.prior_layers == (0, 2) and kept.settings.prior_weight == 0.5 and kept.prior.weight.any()
    other, said = built(tmp_path / "with", explicit=["prior_weight"], prior_weight=2.0)
    assert other.settings.prior_weight == 2.0 and torch.equal(other.prior.weight, kept.prior.weight)
    assert any("model.prior_weight=2.0 instead of 0.5" in line for line in said)
    without, _ = built(tmp_path / "with", explicit=["prior_layers"], prior_layers=[])
    assert without.prior is None and without.dim == 24
    with pytest.raises(LoadingError, match=r"prior_layers=\[1\] needs weight \(1, 24\).*leave model.prior_layers out"):
        built(tmp_path / "with", explicit=["prior_layers"], prior_layers=[1])


def test_damaged_weights_of_a_prior_are_refused(tmp_path):
    saved(model_of(), tmp_path / "FINAL")
    weights = load_file(tmp_path / "FINAL" / FILE)
    save_file({"other": weights["weight"]}, tmp_path / "FINAL" / FILE)
    (tmp_path / "FINAL" / MANIFEST).unlink()  # It would report the change first.
    with pytest.raises(LoadingError, match=r"prior.safetensors has other \(2, 24\)"):
        built(tmp_path / "FINAL")
    (tmp_path / "FINAL" / FILE).unlink()
    with pytest.raises(LoadingError, match=r"has no prior.safetensors"):
        built(tmp_path / "FINAL")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"prior_layers": [1, 1]}, r"prior_layers must be different numbers of layers >= 0, got \[1, 1\]"),
        ({"prior_layers": [-1]}, r"prior_layers must be different numbers"),
        ({"prior_layers": [1], "prior_weight": 0}, "prior_weight must be > 0, got 0; to remove the prior"),
    ],
)
def test_settings_are_checked(keys, message):
    with pytest.raises(ValueError, match=message):
        EmbeddingSettings(**keys)


def test_a_layer_that_the_model_lacks_is_refused():
    with pytest.raises(ConfigError, match=r"model.prior_layers=\[1, 3\]: the model has layers 0 to 2, not 3"):
        model_of(prior_layers=[1, 3])


LAYERED = {
    "several layers": {"pooled_layers": [0, 1, 2], "prior_layers": [], "prior_weight": 1.0},
    "several layers, dense, prior": {
        "pooled_layers": [0, 2],
        "layers": [{"type": "Dense", "out_features": 9, "activation": "Identity", "bias": False}],
    },
    "one other layer": {"pooled_layers": [1], "pooling": "max", "prior_layers": [], "prior_weight": 1.0},
    "prompts left out": {"pooled_layers": [1, 2], "query_prompt": "q: ", "include_prompt": False},
}


@pytest.mark.parametrize("form", LAYERED)
def test_pooled_layers_in_folders_and_in_sentence_transformers(tmp_path, form):
    model = model_of(**LAYERED[form])
    assert saved(model, tmp_path / "FINAL") < 1e-6
    again = rankpo.load(str(tmp_path / "FINAL"), "cpu")
    assert again.settings == model.settings
    st = pytest.importorskip("sentence_transformers")
    theirs = st.SentenceTransformer(str(tmp_path / "FINAL"), device="cpu")
    for role, encode in (("query", theirs.encode_query), ("passage", theirs.encode_document)):
        ours = model.encode(TEXTS, role=role)
        np.testing.assert_array_equal(again.encode(TEXTS, role=role), ours)
        np.testing.assert_allclose(encode(TEXTS, batch_size=3), ours, atol=1e-5, rtol=0)


def test_pooled_layers_are_the_means_of_their_hidden_states():
    model = model_of(pooled_layers=[2, 0], prior_layers=[], normalize=False)
    ids = model.inputs.sequences_of(TEXTS[1:2], "candidate").input_ids[None]
    states = backbone("bert", attention="eager")(ids, output_hidden_states=True).hidden_states
    expected = torch.cat([states[2][0].mean(0), states[0][0].mean(0)]).detach().numpy()
    np.testing.assert_allclose(model.encode(TEXTS[1]), expected, atol=2e-5)
    with pytest.raises(ConfigError, match=r"model.pooled_layers=\[3\]: the model has layers 0 to 2, not 3"):
        model_of(pooled_layers=[3])
    with pytest.raises(ValueError, match=r"pooled_layers=\[1, 2\] needs pooling=mean, got cls"):
        EmbeddingSettings(pooled_layers=[1, 2], pooling="cls")


HEAD = [{"type": "Dense", "out_features": 24, "activation": "Identity", "bias": False}]


def test_a_new_linear_layer_on_a_trained_model_changes_nothing_at_first(tmp_path):
    """The last of the pooled layers is the last one, so that the start of a head is the model itself."""
    plain = model_of(prior_layers=[])
    saved(plain, tmp_path / "plain")
    headed, _ = built(tmp_path / "plain", pooled_layers=[1, 2], layers=HEAD)
    np.testing.assert_allclose(headed.encode(TEXTS), plain.encode(TEXTS), atol=1e-6)
    saved(headed, tmp_path / "headed")
    again, _ = built(tmp_path / "headed")
    assert again.settings.pooled_layers == (1, 2) and torch.equal(
        again.layers[0].linear.weight, headed.layers[0].linear.weight
    )


def test_a_frozen_backbone_encodes_each_text_once(tmp_path, monkeypatch):
    saved(model_of(prior_layers=[]), tmp_path / "plain")
    model, _ = built(tmp_path / "plain", pooled_layers=[1, 2], layers=HEAD, freeze_backbone=True, prior_layers=[1])
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"layers.0.linear.weight", "prior.weight"}
    calls = []
    plain = model.hidden_states
    monkeypatch.setattr(model, "hidden_states", lambda given, *read: calls.append(len(given)) or plain(given, *read))
    first = model(model.inputs.sequences_of(TEXTS, "candidate"))
    second = model(model.inputs.sequences_of([TEXTS[2], "new", TEXTS[0]], "candidate"))
    assert calls == [4, 1]
    assert_close(second[[0, 2]], first[[2, 0]])
    model.load_state_dict(
        {name: 2 * tensor if "word_embeddings" in name else tensor for name, tensor in model.state_dict().items()}
    )
    changed = model(model.inputs.sequences_of(TEXTS, "candidate"))
    assert calls == [4, 1, 4] and float((changed - first).abs().max()) > 1e-3
    model.replace_prior(None)
    assert model(model.inputs.sequences_of(TEXTS, "candidate")).shape == (4, 24)
    first.sum().backward()
    assert model.layers[0].linear.weight.grad is not None
    with pytest.raises(ConfigError, match="freeze_backbone=true leaves nothing to train; add layers"):
        built(tmp_path / "plain", freeze_backbone=True)
    with pytest.raises(ValueError, match="freeze_backbone=true trains no adapters"):
        EmbeddingKind(name_or_path="a/b", freeze_backbone=True, use_peft=True)


def test_a_dry_run_leaves_no_states_without_data(tmp_path):
    """Before a run, its memory is measured on tensors without data. The states of the frozen backbone are real after it."""
    saved(model_of(prior_layers=[]), tmp_path / "plain")
    keys = {"pooled_layers": [1, 2], "layers": HEAD, "freeze_backbone": True}
    fresh, measured = built(tmp_path / "plain", **keys)[0], built(tmp_path / "plain", **keys)[0]
    sequences = measured.inputs.sequences_of(TEXTS, "candidate")
    assert activation_bytes(measured, sequences, Pass()) > 0
    assert_close(measured(sequences), fresh(sequences))
    assert activation_bytes(measured, sequences, Pass()) > 0  # also where all states are known
