"""task=prior: a prior on judged pairs with the rest of the model frozen."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest

import rankpo
from rankpo.errors import ConfigError
from tests.runs import RANKPO, train

MODEL = tuple(key for key in RANKPO if key.startswith(("model", "kind")))
TASK = ("task=prior", *MODEL, "datasets=[toy_pairs]", "model.prior_layers=[0,1]", "task.folds=2")


def test_only_the_prior_changes_and_the_pairs_agree_more(tmp_path):
    cache = f"cache_dir={tmp_path}"
    train(*RANKPO, "loss.reference_free=true", "trainer.max_steps=1", cache, "exp_name=start")
    start = rankpo.load(str(tmp_path / "start" / "FINAL"), "cpu")
    row = _run(*TASK, f"model.load_from={tmp_path}/start/FINAL", "task.weight=0.25", cache, "exp_name=p")
    model = rankpo.load(str(tmp_path / "p" / "FINAL"), "cpu")
    assert row["weight"] == 0.25 == model.settings.prior_weight
    texts = ["soil", "a field of wheat"]
    np.testing.assert_array_equal(model.encode(texts)[:, :-1], start.encode(texts))
    assert abs(model.encode(texts)[:, -1]).max() > 0
    with pytest.raises(ConfigError, match="already exists; set overwrite=true"):
        _run(*TASK, f"model.load_from={tmp_path}/start/FINAL", "task.weight=0.25", cache, "exp_name=p")


def _run(*overrides):
    from rankpo.config.compose import compose

    experiment = compose(overrides)
    return experiment.task(experiment)


def test_a_ranked_list_gives_all_its_pairs(tmp_path):
    """The prior of lists is that of their pairs, one by one, and a list of two is a pair."""
    passages = [f"passage {n} about {word}" for n, word in enumerate(("wheat", "soil", "rain", "a field", "the sea"))]
    orders = {"which grows": [3, 0, 1], "which is wet": [4, 2], "which is dry": [1, 0, 3, 2]}
    lists, pairs = [], []
    for query, order in orders.items():
        shown = sorted(order)
        lists.append({"query": query, "passages": [passages[place] for place in shown],
                      "ranking": [shown.index(place) for place in order]})  # fmt: skip
        pairs += [{"query": query, "passage1": passages[a], "passage2": passages[b], "preferred": "A"}
                  for a, b in combinations(order, 2)]  # fmt: skip
    found = []
    for name, rows in (("ranked_lists", lists), ("rankpo", pairs)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = (f"datasets=[{name}]", f"datasets.{name}.path={path}", "task.weight=1", "task.ridges=[0.1]")
        row = _run(*TASK, *data, f"cache_dir={tmp_path}", f"exp_name={name}")
        assert (row["pairs"], row["passages"]) == (10, 5)
        found.append(rankpo.load(str(tmp_path / name / "FINAL"), "cpu").encode(passages)[:, -1])
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-6)
    assert np.ptp(found[0]) > 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.prior_layers=[]",), "set model.prior_layers, such as"),
        (("datasets=[toy_contrastive]",), "datasets hold no pair with different relevance"),
        (("task.folds=1",), "folds must be >= 2, got 1"),
        (("task.ridges=[0]",), r"ridges must be numbers > 0, got \[0\]"),
        (("task.weight=-1",), "weight must be > 0 or null, got -1"),
    ],
)
def test_errors(tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        _run(*TASK, *overrides, f"cache_dir={tmp_path}")
