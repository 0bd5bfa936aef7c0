"""The prior's term of RankPO: Bradley-Terry on the passages' own scores with the judge's confidence as a soft label."""

from __future__ import annotations

from dataclasses import replace
from math import exp, log

import pytest
import torch
from torch import float64, tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from rankpo.losses.pairs import soft_bradley_terry
from rankpo.losses.rankpo import RankPOLoss
from tests.losses.tables import labels

PRIORS = tensor([[1.0, 0.0], [0.5, 2.5], [3.0, 3.0]], dtype=float64)  # gaps 1, -2, 0
SCORES = tensor([[0.7, 0.5], [0.1, 0.4], [0.2, 0.2]], dtype=float64)


def loss(**keys) -> RankPOLoss:
    return RankPOLoss(**{"beta": 2.0, "temperature": 0.1, "reference_free": True, "prior_weight": 0.5, **keys})


def confident(*values: float):
    return replace(labels(len(values)), confidence=tensor(values, dtype=float64))


def test_worked_values():
    """ℓ(1) = .3132617, ℓ(-1) = 1.3132617; ℓ(-2) = 2.1269280, ℓ(2) = .1269280."""
    certain = soft_bradley_terry(tensor([1.0, -2.0, 0.0], dtype=float64), confident(1, 1, 1))
    assert_close(certain, tensor([0.3132617, 2.1269280, log(2)], dtype=float64), rtol=0, atol=1e-6)
    soft = soft_bradley_terry(tensor([1.0, -2.0], dtype=float64), confident(0.75, 0.6))
    expected = [0.75 * 0.3132617 + 0.25 * 1.3132617, 0.6 * 2.1269280 + 0.4 * 0.1269280]
    assert_close(soft, tensor(expected, dtype=float64), rtol=0, atol=1e-6)


def test_the_optimum_is_the_judges_confidence():
    gaps = torch.zeros(2, dtype=float64, requires_grad=True)
    values = [0.8, 0.55]
    for _ in range(400):
        (gradient,) = torch.autograd.grad(soft_bradley_terry(gaps, confident(*values)).sum(), gaps)
        gaps = (gaps - 2 * gradient).detach().requires_grad_()
    assert_close(gaps.sigmoid().detach(), tensor(values, dtype=float64), rtol=0, atol=1e-6)


def test_a_term_of_its_own_that_leaves_the_others_as_they_are():
    given = confident(1, 1, 0.9)
    output = loss()(SCORES, given, priors=PRIORS)
    assert_close(output.losses, loss(prior_weight=0.0)(SCORES, given).losses)
    term = output.terms["prior"]
    assert term.scale == 0.5 and term.weights is not None and term.weights.tolist() == [1, 1, 1]
    assert_close(term.losses, soft_bradley_terry(tensor([1.0, -2.0, 0.0], dtype=float64), given))
    assert output.metrics["prior/accuracies"].tolist() == [1, 0, 0]
    weighted = loss(confidence="weight")(SCORES, given, priors=PRIORS)  # a soft label is not weighted once more
    assert weighted.terms["prior"].weights.tolist() == [1, 1, 1]


def test_the_prior_can_learn_alone():
    output = loss(rankpo_weight=0.0)(SCORES, confident(1, 1, 1), priors=PRIORS)
    assert output.losses.tolist() == [0, 0, 0]
    assert output.terms["prior"].losses[0] == pytest.approx(log(1 + exp(-1)))


def test_gradient_in_float64():
    given = confident(0.7, 0.9, 0.5)

    def value(scores, priors):
        output = loss()(scores, given, priors=priors)
        return output.losses, output.terms["prior"].losses

    assert gradcheck(value, (SCORES.clone().requires_grad_(), PRIORS.clone().requires_grad_()))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"prior_weight": -1.0}, "prior_weight must be >= 0, got -1.0"),
        ({"rankpo_weight": 0.0, "prior_weight": 0.0}, "rankpo_weight, sft_weight and prior_weight are all 0"),
        ({"reference_free": False}, "prior_weight=0.5 needs reference_free=true and kl_weight=0"),
        ({"kl_weight": 1.0, "kl_temperature": 0.1}, "prior_weight=0.5 needs reference_free=true and kl_weight=0"),
    ],
)
def test_errors(keys, message):
    with pytest.raises(ValueError, match=message):
        loss(**keys)


def test_a_model_without_a_prior_is_an_error():
    with pytest.raises(ValueError, match=r"prior_weight=0.5 needs the priors of the candidates \[B, G\], got None"):
        loss()(SCORES, confident(1, 1, 1))
