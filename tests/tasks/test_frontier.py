"""task=frontier: the choice by hand, what is measured, and a FINAL that is what the table says."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import rankpo
from rankpo.config.compose import compose
from rankpo.errors import ConfigError
from rankpo.evaluation.frontier import Candidate, most_aligned, undominated
from rankpo.evaluation.rescaled import Rescaled
from rankpo.models.interpolation import InterpolationError, interpolate_by_layers, layer_groups
from tests.models.test_prior import TEXTS, model_of
from tests.runs import RANKPO, train


def one(kept: float, agreement: float) -> Candidate:
    return Candidate(source="a", alphas=(0.5,), kept=kept, agreement=agreement)


def test_choice_by_hand():
    points = [one(1.0, 0.5), one(0.99, 0.6), one(0.99, 0.55), one(0.97, 0.7), one(1.1, 0.4), one(0.9, 0.7)]
    assert undominated(points) == [points[3], points[1], points[0], points[4]]
    assert most_aligned(points, 0.98) is points[1]
    assert most_aligned(points, 0.97) is points[3]
    assert most_aligned(points, 1.2) is None
    equal = [one(0.98, 0.6), one(0.99, 0.6)]
    assert most_aligned(equal, 0.98) is equal[1] and undominated(equal) == [equal[1]]


def test_labels():
    start = Candidate(source="start", kept=1, agreement=0.5)
    assert start.label == "start"
    assert one(1, 1).label == "a, α 0.5"
    own = Candidate(source="a", alphas=(1.0,), prior="a", prior_weight=0.05, kept=1, agreement=1)
    assert own.label == "a, λ 0.05"
    given = Candidate(source="a", alphas=(0.5, 1), prior="p", prior_weight=0.05, kept=1, agreement=1)
    assert given.label == "a, α 0.5/1, λ 0.05 of p"


def test_layers_have_alphas_of_their_own():
    names = ["embeddings.word.weight", *(f"encoder.layer.{n}.weight" for n in range(4)), "pooler.weight"]
    assert list(layer_groups(names, 2).values()) == [0, 0, 0, 1, 1, 1]
    start = {name: torch.zeros(1) for name in names[:-1]}
    trained = {name: torch.ones(1) for name in names}
    mixed = interpolate_by_layers(start, trained, (0.25, 0.5))
    assert [float(mixed[name]) for name in names] == [0.25, 0.25, 0.25, 0.5, 0.5, 1]
    assert list(mixed) == names
    with pytest.raises(InterpolationError, match="5 groups of layers were requested, but the model has only 4 layers"):
        layer_groups(names, 5)


def test_a_text_is_encoded_once_for_all_weights_of_a_prior(monkeypatch):
    model = model_of()
    scaled, calls = Rescaled(model), []
    plain = model.encode_sequences
    monkeypatch.setattr(model, "encode_sequences", lambda *given: calls.append(1) or plain(*given))
    passages, queries = (model.inputs.sequences_of(TEXTS, role) for role in ("candidate", "query"))
    for weight in (0.0, 0.5, 2.0):
        scaled.prior_weight = weight
        found = scaled.encode_sequences(passages).numpy(), scaled.encode_sequences(queries).numpy()
        np.testing.assert_allclose(found[0][:, -1], model.encode(TEXTS)[:, -1] * weight / 0.5, rtol=1e-6)
        assert found[1][:, -1].tolist() == [1, 1, 1, 1]
        np.testing.assert_array_equal(found[0][:, :-1], model.encode(TEXTS)[:, :-1])
    assert len(calls) == 2 + 3 * 2  # 2 of the sweep; the rest are `encode` of this test


TEST = ("eval_datasets.jobs_test.num_profiles=40", "eval_datasets.jobs_test.num_posts=6")
DEV = (
    "eval_datasets.jobs_dev.num_profiles=40",
    "eval_datasets.jobs_dev.num_posts=6",
    "eval_datasets.jobs_preferences_dev.num_profiles=40",
    "eval_datasets.jobs_preferences_dev.num_posts=6",
)
TASK = ("task=frontier", "model=tiny_bert", "eval_datasets=[jobs_dev,jobs_preferences_dev,jobs_test]", *DEV, *TEST)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A start model, two runs from it, and a prior for it."""
    cache = tmp_path_factory.mktemp("frontier")
    two = (*RANKPO, "loss.reference_free=true", f"cache_dir={cache}", "trainer.max_steps=2")
    train(*two, "exp_name=start")
    start = f"model.load_from={cache}/start/FINAL"
    for seed in (1, 2):
        train(*two, start, f"seed={seed}", f"exp_name=r{seed}")
    train(*two, start, "model.prior_layers=[0,1]", "loss.prior_weight=1", "model.prior_lr=5", "exp_name=p")
    prior = ("task=prior", "model=tiny_bert", "datasets=[toy_pairs]", start, "model.prior_layers=[1]")
    run(*prior, "task.folds=2", "task.weight=0.2", f"cache_dir={cache}", "exp_name=fitted")
    return cache


def run(*overrides: str):
    experiment = compose(overrides)
    return experiment.task(experiment)


def test_models_between_are_measured_and_the_best_is_written(runs):
    cache = f"cache_dir={runs}"
    options = (f"task.runs=[{runs}/r1,{runs}/p]", f"task.soups=[[{runs}/r1,{runs}/r2]]", "task.alphas=[0,0.5,1]")
    weights = "task.prior_weights=[0,1,3]"
    run(*TASK, *options, weights, "task.test=[jobs_test]", "task.floor=0", cache, "exp_name=f")
    record = json.loads((runs / "f" / "frontier.json").read_text())
    # start; r1 and the soup at 2 alphas; p at α = 0 with 2 weights, and at 2 alphas with 3
    assert len(record["candidates"]) == 1 + 2 + 2 + 2 + 6
    assert record["kept"] == "jobs_dev/ndcg@20" and record["agreement"] == "jobs_preferences_dev/accuracy"
    assert {name.split("/")[0] for name in record["candidates"][0]["metrics"]} == {"jobs_dev", "jobs_preferences_dev"}
    chosen = record["candidates"][record["chosen"]]
    assert chosen["agreement"] == max(candidate["agreement"] for candidate in record["candidates"])
    page = (runs / "f" / "frontier.html").read_text()
    assert "<svg" in page and "start" in page and "→ FINAL" in page
    evaluated = run(
        "task=evaluate", "model=tiny_bert", f"model.load_from={runs}/f/FINAL", "eval_datasets=[jobs_preferences_dev]",
        *DEV[2:], cache, "exp_name=check",
    )  # fmt: skip
    assert evaluated[0]["jobs_preferences_dev/accuracy"] == pytest.approx(chosen["agreement"], abs=1e-9)
    with pytest.raises(ConfigError, match="FINAL already exists; set overwrite=true"):
        run(*TASK, *options, cache, "exp_name=f")


def test_a_prior_is_added_to_runs_and_to_the_start_model(runs):
    cache = f"cache_dir={runs}"
    priors = (f"task.runs=[{runs}/r1]", f"task.priors=[{runs}/fitted]", "task.alphas=[1]", "task.prior_weights=[0.5,2]")
    run(*TASK, *priors, "task.test=[jobs_test]", "task.floor=0", cache, "exp_name=g")
    record = json.loads((runs / "g" / "frontier.json").read_text())
    found = [(one["source"], one["prior"], round(one["prior_weight"], 6)) for one in record["candidates"]]
    assert found == [
        ("start", "", 0.0),
        ("r1", "", 0.0),
        *(("r1", "fitted", weight) for weight in (0.1, 0.4)),
        *(("start", "fitted", weight) for weight in (0.1, 0.4)),
    ]
    final = rankpo.load(str(runs / "g" / "FINAL"), "cpu")
    chosen = record["candidates"][record["chosen"]]
    assert (final.prior is not None) == (chosen["prior_weight"] > 0)
    if final.prior is not None:
        assert final.settings.prior_weight == pytest.approx(chosen["prior_weight"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((), "runs, soups and priors are all empty"),
        (("task.priors=[{}/start/FINAL]", "model.load_from={}/start/FINAL"), "has no prior; make one with task=prior"),
        (("task.runs=[{}/r1]", "task.test=[other]"), "task.test names other, and eval_datasets holds jobs_dev"),
        (("task.runs=[{}/r1]", "task.kept=ndcg"), "task.kept=ndcg is not measured; allowed: jobs_dev/ndcg@20"),
        (
            ("task.runs=[{}/r1]", "eval_datasets=[jobs_preferences_dev]"),
            "add a collection with relevance judgements to eval_datasets",
        ),
        (("task.runs=[{}/r1]", "task.floor=-1"), "floor must be >= 0, got -1"),
        (("task.runs=[{}]",), "is not a run directory with a FINAL"),
        (("task.soups=[[{}/r1,{}/r1]]",), "soups must be lists of two different run directories"),
        (("task.runs=[{}/r1,{}/start]",), "the runs started from .*; set task.start"),
    ],
)
def test_what_cannot_work_is_refused(runs, overrides, message):
    given = [key.format(runs, runs) for key in overrides]
    task = [key for key in TASK if not key.startswith("eval_datasets.")] if "=[jobs_pref" in str(given) else TASK
    with pytest.raises(ConfigError, match=message):
        run(*task, *given, f"cache_dir={runs}", "exp_name=refused")
