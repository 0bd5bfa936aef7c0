"""Hybrid models against the formulas of BGE-M3 written out: parts, scores, the M3 loss; folders; a trained run."""

import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close

import rankpo
from rankpo.errors import ConfigError
from rankpo.losses.self_distillation import SelfDistillationLoss
from rankpo.models.hybrid.config import HybridKind
from rankpo.models.hybrid.layers import CONVERT
from rankpo.models.hybrid.model import HybridModel
from rankpo.models.hybrid.saving import HybridFolder
from rankpo.models.hybrid.settings import HybridSettings
from rankpo.models.inputs import TextInputs
from rankpo.models.loading import LoadingError
from rankpo.models.random_weights import byte_tokenizer
from rankpo.models.saving import save
from rankpo.types import Batch, Labels, Vectors
from tests.models.families import backbone
from tests.runs import curve, train

QUERIES = ["what rain does", "soil"]
TEXTS = ["rain falls", "dust", "dark soil and mud", "a car", "wheat"]


def hybrid(**settings):
    inputs = TextInputs(byte_tokenizer(), HybridSettings(query_max_length=20, passage_max_length=20, **settings))
    torch.manual_seed(5)
    model = HybridModel(backbone("xlm-roberta"), inputs).eval()
    with torch.no_grad():
        model.sparse_linear.weight.mul_(20)
    return model


def naive(model, text, role):
    """dense [D], weights by token id, token vectors [T - 1, D'] of one text by transformers' own forward pass."""
    ids = model.inputs.sequences_of([text], role).input_ids
    hidden = backbone("xlm-roberta", attention="eager")(input_ids=ids[None]).last_hidden_state[0]
    weights = {}
    for number, state in zip(ids.tolist()[1:], hidden[1:], strict=True):
        if number not in model.tokenizer.all_special_ids:
            weight = max(0.0, float(model.sparse_linear(state)))
            weights[number] = max(weights.get(number, 0.0), weight)
    return normalize(hidden[0], dim=0), weights, normalize(model.colbert_linear(hidden[1:]), dim=1)


def naive_scores(model):
    """[3, q, c] of dense, sparse and colbert."""
    left = [naive(model, text, "query") for text in QUERIES]
    right = [naive(model, text, "candidate") for text in TEXTS]
    dense = [[float(q[0] @ d[0]) for d in right] for q in left]
    sparse = [[sum(weight * d[1].get(number, 0) for number, weight in q[1].items()) for d in right] for q in left]
    colbert = [[float((q[2] @ d[2].T).amax(1).mean()) for d in right] for q in left]
    return torch.tensor([dense, sparse, colbert])


def encoded(model):
    """Vectors of queries and texts."""
    made = []
    for texts, role in ((QUERIES, "query"), (TEXTS, "candidate")):
        sequences = model.inputs.sequences_of(texts, role)
        made.append(Vectors(model(sequences), model.counts(sequences)))
    return made


@pytest.mark.parametrize("colbert_dim", [None, 8, 40])
def test_scores_are_those_of_the_formulas(colbert_dim):
    model = hybrid(colbert_dim=colbert_dim)
    expected = naive_scores(model)
    assert (expected[1] > 0).any()
    found = model.part_similarities(*encoded(model))
    assert_close(found[1:], expected, rtol=1e-4, atol=1e-5)
    assert_close(found[0], expected[0] + 0.3 * expected[1] + expected[2], rtol=1e-4, atol=1e-5)
    queries, texts = encoded(model)
    pairs = model.paired(queries, texts.select(torch.tensor([2, 0])))
    assert_close(pairs, found[0][[0, 1], [2, 0]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("part", "place"), [("dense", 0), ("sparse", 1), ("colbert", 2)])
def test_a_part_alone(part, place):
    model = hybrid(parts=[part], **{f"{part}_weight": 1.0})
    assert_close(model.similarity(*encoded(model)), naive_scores(model)[place], rtol=1e-4, atol=1e-5)


def test_the_parts_for_users():
    model = hybrid(colbert_dim=8)
    parts = model.encode_parts(TEXTS)
    for row, text in enumerate(TEXTS):
        dense, weights, tokens = naive(model, text, "candidate")
        np.testing.assert_allclose(parts.dense[row], dense.detach().numpy(), atol=1e-5)
        np.testing.assert_allclose(parts.colbert[row], tokens.detach().numpy(), atol=1e-5)
        own = parts.sparse[[row]]
        found = dict(zip(own.indices.tolist(), own.data.tolist(), strict=True))
        assert found == pytest.approx({number: weight for number, weight in weights.items() if weight}, abs=1e-5)


def test_a_single_encoding_is_refused_by_name():
    for call in (hybrid().encode, hybrid().encode_query, hybrid().encode_document):
        with pytest.raises(TypeError, match="call encode_parts"):
            call("soil")


def batch():
    labels = Labels(torch.tensor([[1.0, 0], [1, 0]]), torch.ones(2, 2, dtype=torch.bool), torch.ones(2))
    candidates = torch.tensor([[2, 3], [4, 5]])
    sequences = hybrid().inputs.sequences_of([*QUERIES, *TEXTS[:4]], "candidate")
    return Batch(sequences, torch.tensor([0, 1]), candidates, labels, ("a", "b"))


@pytest.mark.parametrize("distillation", [True, False])
def test_the_loss_is_that_of_the_paper(distillation):
    model, given = hybrid(), batch()
    rows = model(given.sequences)
    loss = SelfDistillationLoss(temperature=0.5, part_weights=(1.0, 0.1, 0.7), distillation=distillation)
    output = loss.in_batch(Vectors(rows, model.counts(given.sequences)), given, None, model.part_similarities)
    vectors = Vectors(rows, model.counts(given.sequences))
    parts = model.part_similarities(vectors.select(torch.tensor([0, 1])), vectors.select(torch.tensor([2, 3, 4, 5])))
    logits = parts / 0.5
    target, scale = torch.tensor([0, 2]), torch.tensor([1.0, 0.1, 0.7])[:, None]
    own = torch.stack([torch.nn.functional.cross_entropy(each, target, reduction="none") for each in logits])
    expected = (own[0] + (scale * own[1:]).sum(0)) / 4
    if distillation:
        teacher = logits[0].detach().softmax(1)
        learned = -(teacher * logits[1:].log_softmax(2)).sum(2)
        expected = (expected + (scale * learned).sum(0) / 3) / 2
    assert_close(output.losses, expected)
    names = ("sparse_linear.weight", "colbert_linear.weight")
    weights = [dict(model.named_parameters())[name] for name in names]
    ours = torch.autograd.grad(output.losses.sum(), weights, retain_graph=True)
    assert_close(ours, torch.autograd.grad(expected.sum(), weights), rtol=1e-4, atol=1e-6)


def test_other_numbers_of_weights_are_refused():
    model, given = hybrid(parts=["dense", "sparse"]), batch()
    vectors = Vectors(model(given.sequences), model.counts(given.sequences))
    with pytest.raises(ValueError, match="part_weights has 3 weights, but the model has 2 parts"):
        SelfDistillationLoss(temperature=1.0).in_batch(vectors, given, None, model.part_similarities)


def test_folders_there_and_back_and_pickles_are_refused(tmp_path):
    model = hybrid(colbert_dim=8)
    assert save(tmp_path / "saved", model, HybridFolder(), {}) <= 1e-5
    again = rankpo.load(tmp_path / "saved", "cpu")
    assert again.kind == "hybrid" and again.settings == model.settings
    assert_close(again.similarity(*encoded(again)), model.similarity(*encoded(model)), rtol=1e-5, atol=1e-6)
    folder = tmp_path / "flag"
    model.base.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)

    def kind(**more):
        made = HybridKind(name_or_path=str(folder), colbert_dim=8, query_max_length=20, passage_max_length=20, **more)
        return made.build(made.open_inputs(print), print).eval()

    with pytest.raises(LoadingError, match=r"has no sparse_linear.safetensors, .* model.new_layers=true"):
        kind()
    assert kind(new_layers=True).colbert_linear.out_features == 8
    for name in ("sparse_linear", "colbert_linear"):
        torch.save(model.get_submodule(name).state_dict(), folder / f"{name}.pt")
    with pytest.raises(LoadingError, match="they can run code") as refused:
        kind()
    assert CONVERT in str(refused.value)
    words = shlex.split(CONVERT)
    subprocess.run([sys.executable, *words[1:]], cwd=folder, check=True)
    converted = kind()
    assert_close(converted.similarity(*encoded(converted)), model.similarity(*encoded(model)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"parts": ["dense", "bm25"]},
            r"parts must be a list of some of dense, sparse, colbert, got \['dense', 'bm25'\]",
        ),
        ({"parts": []}, "parts must be a list"),
        ({"sparse_weight": 0}, "sparse_weight must be > 0, got 0; to exclude this part"),
        ({"colbert_dim": 0}, "colbert_dim must be >= 1 or null, got 0"),
    ],
)
def test_settings_are_checked(keys, message):
    with pytest.raises(ValueError, match=message):
        HybridSettings(**keys)


def test_it_trains_and_a_part_is_evaluated_alone(tmp_path):
    common = (
        "model=tiny_bert",
        "model.random.num_hidden_layers=1",
        "model.query_max_length=64",
        "model.passage_max_length=96",
    )
    data = (
        "eval_datasets=[toy_graded]",
        "eval_datasets.toy_graded.num_posts=3",
        "eval_datasets.toy_graded.num_profiles=20",
    )
    run = (
        "loss=m3",
        "loss.temperature=0.1",
        "datasets=[toy_contrastive]",
        "trainer.batch_size=4",
        "trainer.max_steps=2",
    )
    train(*common, *run, *data, "trainer.log_every=1", f"cache_dir={tmp_path}", "exp_name=run")
    folder = tmp_path / "run"
    assert len(curve(folder)) == 2 and len(curve(folder, "train/loss/distillation")) == 2
    alone = (*common, "kind=hybrid", "model.parts=[sparse]", f"model.load_from={folder}/FINAL", *data)
    train(*alone, "task=evaluate", f"cache_dir={tmp_path}", "exp_name=alone")


def test_the_loss_needs_parts():
    from rankpo.config.compose import compose

    with pytest.raises(ConfigError, match=r"needs scores of several parts; .* Add kind=hybrid"):
        compose(["loss=m3", "kind=embedding", "model=tiny_bert", "datasets=[toy_contrastive]"])
