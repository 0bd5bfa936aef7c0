"""task=prior: a prior on judged pairs with the rest of the model frozen."""

from __future__ import annotations

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
