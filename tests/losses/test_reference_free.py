"""SimPO, CPO, ORPO and SLiC: the golden table, their closed forms on two candidates, gradients."""

from __future__ import annotations

import pytest
import torch
from torch import float64, tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from rankpo.losses.rankpo import RankPOLoss
from rankpo.losses.reference_free import CPOLoss, ORPOLoss, SimPOLoss, SLiCLoss
from tests.losses.tables import LENGTHS, LOGPS, SCORES, assert_values, labels

DELTA = SCORES[:, 0] - SCORES[:, 1]


def log_loss(x):
    """ℓ(x) as minus the log-probability of the first of two classes."""
    return -torch.stack([x, torch.zeros_like(x)], 1).log_softmax(1)[:, 0]


@pytest.mark.parametrize(
    ("loss", "pair_1", "pair_2"),
    [
        (SimPOLoss(), 2.0176751, 0.7575990),
        (CPOLoss(alpha=0.0, logps="none"), 0.5981389, 0.9740770),
        (CPOLoss(logps="none"), 3.5981389, 3.4740770),
        (ORPOLoss(logps="none"), 3.0804571, 2.5461161),
        (SLiCLoss(logps="none"), 1.2, 8.0),
    ],
)
def test_golden_values(loss, pair_1, pair_2):
    assert "reference" not in loss.needs
    assert_values(loss(LOGPS, labels(2, lengths=LENGTHS)).losses, pair_1, pair_2)


def test_orpo_log_odds_gap():
    """With λ = 1 the loss less nll is ℓ(gap): -.2116684 and .5345813."""
    output = ORPOLoss(lambda_=1.0, logps="none")(LOGPS, labels(2, lengths=LENGTHS))
    gap = tensor([-0.2116684, 0.5345813], dtype=float64)
    assert_close(output.metrics["loss/preference"], log_loss(gap), atol=1e-7, rtol=0)
    assert_close(output.metrics["loss/sft"], tensor([3.0, 2.5], dtype=float64))


def test_nll_sum_and_mean():
    """α·12 against α·12/4, and the same for slic: nothing else differs."""
    for family, weight in ((CPOLoss(alpha=0.5, logps="none"), 0.5), (SLiCLoss(lambda_=0.5, logps="none"), 0.5)):
        by_sum = type(family)(**{**vars(family), "nll": "sum"})(LOGPS, labels(2, lengths=LENGTHS)).losses
        by_mean = type(family)(**{**vars(family), "nll": "mean"})(LOGPS, labels(2, lengths=LENGTHS)).losses
        assert_close(by_sum - by_mean, weight * tensor([12.0 - 3.0, 20.0 - 2.5], dtype=float64))


def test_simpo_is_reference_free_rankpo_on_means():
    means = LOGPS / LENGTHS
    on_means = RankPOLoss(beta=2.5, temperature=1.0, margin=0.55, reference_free=True)(means, labels(2))
    simpo = SimPOLoss()(LOGPS, labels(2, lengths=LENGTHS))
    assert_close(simpo.losses, on_means.losses)
    assert_close(simpo.metrics["rewards/margins"], on_means.metrics["rewards/margins"])


def test_orpo_on_two_candidates():
    """o_w - o_l = 2Δ where the two probabilities sum to 1: ℓ(Δ) + λℓ(2Δ)."""
    output = ORPOLoss(lambda_=0.3, temperature=0.5)(SCORES, labels(5))
    assert_close(output.losses, log_loss(DELTA / 0.5) + 0.3 * log_loss(2 * DELTA / 0.5))


def test_orpo_with_sigmoid_log_probabilities():
    """Log-odds of σ(s) are s: ℓ(s_w) + λℓ(s_w - s_l)."""
    output = ORPOLoss(lambda_=0.3, logps="sigmoid")(SCORES, labels(5))
    assert_close(output.losses, log_loss(SCORES[:, 0]) + 0.3 * log_loss(DELTA))


def test_orpo_stays_finite_where_a_probability_rounds_to_1():
    scores = tensor([[40.0, -40.0], [-40.0, 40.0]], requires_grad=True)
    output = ORPOLoss()(scores, labels(2))
    output.losses.sum().backward()
    assert scores.grad is not None
    assert torch.isfinite(output.losses).all() and torch.isfinite(scores.grad).all()


def test_cpo_on_two_candidates():
    """ℓ(βΔ) + αℓ(Δ)."""
    output = CPOLoss(beta=0.2, alpha=0.7, temperature=0.5)(SCORES, labels(5))
    assert_close(output.losses, log_loss(0.2 * DELTA / 0.5) + 0.7 * log_loss(DELTA / 0.5))


def test_slic_on_two_candidates():
    output = SLiCLoss(delta=2.0, lambda_=0.4, temperature=0.5)(SCORES, labels(5))
    assert_close(output.losses, (2 - DELTA / 0.5).clamp(min=0) + 0.4 * log_loss(DELTA / 0.5))


LOSSES = [SimPOLoss(temperature=0.5), CPOLoss(temperature=0.5), ORPOLoss(temperature=0.5), SLiCLoss(temperature=0.5)]


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_constant_per_query_changes_nothing(loss):
    shift = torch.arange(5, dtype=float64)[:, None]
    assert_close(loss(SCORES + shift, labels(5)).losses, loss(SCORES, labels(5)).losses)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_gradients(loss):
    scores = SCORES.clone().requires_grad_()
    assert gradcheck(lambda s: loss(s, labels(5)).losses, (scores,), atol=1e-6)
    assert not any(value.requires_grad for value in loss(scores, labels(5)).metrics.values())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SimPOLoss(margin=-0.1), "margin must be >= 0, got -0.1"),
        (lambda: SimPOLoss(beta=0.0), "beta must be > 0, got 0.0"),
        (lambda: CPOLoss(alpha=-1.0), "alpha must be >= 0, got -1.0"),
        (lambda: CPOLoss(nll="max"), "nll must be one of mean, sum, got 'max'"),
        (lambda: ORPOLoss(lambda_=-1.0), "lambda_ must be >= 0, got -1.0"),
        (lambda: ORPOLoss(logps="mean"), "logps must be one of auto, candidates, sigmoid, none, got 'mean'"),
        (lambda: SLiCLoss(delta=0.0), "delta must be > 0, got 0.0"),
        (lambda: SLiCLoss(temperature=0.0), "temperature must be > 0, got 0.0"),
    ],
)
def test_errors_name_field_and_value(build, message):
    with pytest.raises(ValueError, match=message):
        build()
