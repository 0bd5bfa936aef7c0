"""A prior in a run: who teaches it, how fast, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

import rankpo
from rankpo.errors import ConfigError
from tests.runs import CONTRASTIVE, RANKPO, train, trainer_of

PRIOR = (
    *RANKPO,
    "loss.reference_free=true",
    "model.prior_layers=[0,1]",
    "replay_datasets=[toy_contrastive]",
    "loss.replay_weight=0.5",
    "loss.replay_temperature=0.1",
)


def grads(*overrides: str):
    """Gradients of one update by name, from a prior that is not 0."""
    trainer = trainer_of(*overrides, "trainer.max_grad_norm=null")
    with torch.no_grad():
        torch.manual_seed(3)
        trainer.policy.prior.weight.normal_()
    trainer.policy.train()
    trainer.backward(trainer.prepare(0))
    return {name: p.grad for name, p in trainer.policy.named_parameters() if p.grad is not None}, trainer


def test_prior_weight_separates_the_prior_from_the_scores(tmp_path):
    """Without pairs for the scores, the prior's gradient is that of Bradley-Terry alone, and replay does not see it."""
    cache = f"cache_dir={tmp_path}"
    alone, trainer = grads(*PRIOR, "loss.prior_weight=1", "loss.rankpo_weight=0", cache)
    batch = trainer.prepare(0).pairs.micro_batches[0].batch
    trainer.policy.zero_grad()
    output = trainer.policy(batch.sequences)
    priors = output[:, -1][batch.candidates]
    gaps, certain = priors[:, 0] - priors[:, 1], batch.labels.confidence
    expected = torch.nn.functional.binary_cross_entropy_with_logits(gaps, certain)
    (gradient,) = torch.autograd.grad(expected, trainer.policy.prior.weight)
    assert_close(alone["prior.weight"], gradient, rtol=1e-4, atol=1e-6)


def test_without_prior_weight_the_prior_is_a_part_of_every_score(tmp_path):
    cache = f"cache_dir={tmp_path}"
    inside, _ = grads(*PRIOR, cache)
    replayed, _ = grads(*PRIOR, "loss.replay_weight=1.0", cache)
    assert float((inside["prior.weight"] - replayed["prior.weight"]).abs().max()) > 1e-4


@pytest.mark.parametrize("max_tokens", [60, 100_000])
def test_a_run_trains_saves_and_loads_the_prior(tmp_path, max_tokens):
    options = (*PRIOR, "loss.prior_weight=1", "model.prior_lr=0.5", "trainer.max_steps=3", f"cache_dir={tmp_path}")
    train(*options, f"trainer.max_tokens={max_tokens}", "exp_name=p", "model.prior_weight=0.3")
    model = rankpo.load(str(tmp_path / "p" / "FINAL"), "cpu")
    assert model.settings.prior_layers == (0, 1) and model.settings.prior_weight == 0.3
    assert float(model.prior.weight.detach().abs().max()) > 0
    assert model.encode("a text").shape == (model.topic_dim + 1,)


def test_a_prior_has_its_own_learning_rate(tmp_path):
    trainer = trainer_of(*PRIOR, "model.prior_lr=0.7", f"cache_dir={tmp_path}")
    rates = {id(p): group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    named = dict(trainer.policy.named_parameters())
    assert rates[id(named["prior.weight"])] == 0.7
    assert {rates[id(p)] for name, p in named.items() if name != "prior.weight" and id(p) in rates} == {0.1}
    trainer = trainer_of(*PRIOR, f"cache_dir={tmp_path}")
    assert len(trainer.optimizer.param_groups) == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            (*CONTRASTIVE, "model.prior_layers=[1]", "loss.matryoshka_dims=[4]"),
            "loss.matryoshka_dims compares vectors by",
        ),
        (
            (*(key for key in CONTRASTIVE if not key.startswith("loss")), "loss=triplet", "model.prior_layers=[1]"),
            r"TripletLoss compares .* \(model.prior_layers=\[1\]\) is a dimension of inner products",
        ),
        ((*RANKPO, "loss.reference_free=true", "loss.prior_weight=1"), "loss.prior_weight=1.* set model.prior_layers"),
        ((*CONTRASTIVE, "model.prior_layers=[9]"), "the model has layers 0 to 1, not 9"),
        ((*CONTRASTIVE, "model.prior_lr=0"), "prior_lr must be > 0 or null, got 0"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        trainer_of(*overrides, f"cache_dir={tmp_path}")
