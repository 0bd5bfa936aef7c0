"""Stable logarithms, log-probabilities of scores and KL over candidates: by hand, at the extremes, under masks."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from torch import float64, tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from rankpo.losses.maths import candidate_kl, log1mexp, logps_from_scores, masked_log_softmax, negative_log_sigmoid

SCORES = tensor([[0.7, 0.5, 0.4]], dtype=float64)
REFERENCE = tensor([[0.6, 0.5, 0.45]], dtype=float64)
ALL = torch.ones(1, 3, dtype=torch.bool)


def test_negative_log_sigmoid_does_not_saturate():
    assert_close(negative_log_sigmoid(tensor([0.0, -200.0, 200.0])), tensor([log(2), 200.0, 0.0]))


def test_log1mexp_at_both_ends():
    """log(1 - 1/2) = -ln 2; near 0, 1 - e^-x is x; far below, it is -e^x; at 0 finite and without gradient."""
    x = tensor([-log(2), -1e-12, -30.0], dtype=float64)
    assert_close(log1mexp(x), tensor([-log(2), log(1e-12), -exp(-30.0)], dtype=float64), rtol=1e-9, atol=1e-16)
    zero = torch.zeros(1, requires_grad=True)
    log1mexp(zero).sum().backward()
    assert zero.grad is not None and torch.isfinite(log1mexp(zero)).all() and zero.grad.item() == 0


def test_masked_log_softmax_is_that_of_the_unmasked_entries():
    scores = tensor([[1.0, 9.0, 2.0], [3.0, 1.0, 4.0]], dtype=float64)
    mask = tensor([[True, False, True], [True, True, True]])
    expected = torch.stack([tensor([1.0, 2.0]).double().log_softmax(0), tensor([3.0, 4.0]).double().log_softmax(0)])
    result = masked_log_softmax(scores, mask)
    assert_close(result[0, [0, 2]], expected[0])
    assert result[0, 1] == 0
    assert_close(result[1].exp().sum(), tensor(1.0, dtype=float64))


@pytest.mark.parametrize("padding", [float("nan"), float("inf"), -float("inf")])
def test_what_stands_on_padding_has_no_effect(padding):
    scores = tensor([[1.0, 2.0, padding], [padding, padding, padding]], dtype=float64, requires_grad=True)
    mask = tensor([[True, True, False], [False, False, False]])
    logps = masked_log_softmax(scores, mask)
    (logps[:, 0] + logps[:, 2]).sum().backward()
    assert_close(logps[1], torch.zeros(3, dtype=float64))
    assert scores.grad is not None
    assert_close(scores.grad[0, :2].sum(), tensor(0.0, dtype=float64))
    assert scores.grad[0, 0] > 0.5
    assert not scores.grad[1].any() and scores.grad[0, 2] == 0


def test_logps_of_scores():
    """τ .5: s/τ = 1.4, 1, .8. Candidates: exp sums to 1; sigmoid: log 1/(1 + e^-1.4); none: as it is."""
    scaled = [1.4, 1.0, 0.8]
    total = sum(exp(s) for s in scaled)
    expected = {
        "candidates": [log(exp(s) / total) for s in scaled],
        "sigmoid": [log(1 / (1 + exp(-s))) for s in scaled],
        "none": scaled,
    }
    for name, values in expected.items():
        assert_close(logps_from_scores(SCORES, ALL, 0.5, name), tensor([values], dtype=float64))
    with pytest.raises(ValueError, match="logps must be one of candidates, sigmoid, none, got 'softmax'"):
        logps_from_scores(SCORES, ALL, 0.5, "softmax")


def test_candidate_kl_golden_values_and_gradient():
    scores = SCORES.clone().requires_grad_()
    forward = candidate_kl(scores, REFERENCE, ALL, 0.1, "forward")
    (gradient,) = torch.autograd.grad(forward.sum(), scores)
    assert_close(forward, tensor([0.1470677], dtype=float64), atol=5.1e-8, rtol=0)
    assert_close(gradient, tensor([[2.1526302, -1.1702870, -0.9823432]], dtype=float64), atol=5.1e-8, rtol=0)
    reverse = candidate_kl(SCORES, REFERENCE, ALL, 0.1, "reverse")
    assert_close(reverse, tensor([0.1173125], dtype=float64), atol=5.1e-8, rtol=0)
    with pytest.raises(ValueError, match="direction must be one of forward, reverse, got 'both'"):
        candidate_kl(SCORES, REFERENCE, ALL, 0.1, "both")


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_candidate_kl_of_equal_scores_is_0_without_gradient(direction):
    scores = SCORES.clone().requires_grad_()
    kl = candidate_kl(scores, SCORES + 3.0, ALL, 0.1, direction)  # a constant per query changes nothing
    (gradient,) = torch.autograd.grad(kl.sum(), scores)
    assert_close(kl, torch.zeros(1, dtype=float64), atol=1e-12, rtol=0)
    assert_close(gradient, torch.zeros(1, 3, dtype=float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_candidate_kl_under_padding(direction):
    padded = torch.cat([SCORES, tensor([[float("nan")]], dtype=float64)], 1).requires_grad_()
    fixed = torch.cat([REFERENCE, tensor([[7.0]], dtype=float64)], 1).requires_grad_()
    mask = tensor([[True, True, True, False]])
    kl = candidate_kl(padded, fixed, mask, 0.1, direction)
    kl.sum().backward()
    assert_close(kl, candidate_kl(SCORES, REFERENCE, ALL, 0.1, direction))
    assert padded.grad is not None and torch.isfinite(padded.grad).all() and padded.grad[0, 3] == 0
    assert fixed.grad is None


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_candidate_kl_of_two_is_the_binary_one(direction):
    """Between Bernoulli(σ((r_w - r_l)/τ)) and Bernoulli(σ((s_w - s_l)/τ))."""
    p, q = 1 / (1 + exp(-0.1 / 0.1)), 1 / (1 + exp(-0.2 / 0.1))
    if direction == "reverse":
        p, q = q, p
    expected = p * log(p / q) + (1 - p) * log((1 - p) / (1 - q))
    kl = candidate_kl(SCORES[:, :2], REFERENCE[:, :2], ALL[:, :2], 0.1, direction)
    assert_close(kl, tensor([expected], dtype=float64))


def test_gradients():
    scores = SCORES.clone().requires_grad_()
    mask = tensor([[True, False, True]])
    for direction in ("forward", "reverse"):
        assert gradcheck(lambda s, way=direction: candidate_kl(s, REFERENCE, mask, 0.5, way), (scores,))
    for logps in ("candidates", "sigmoid", "none"):
        assert gradcheck(lambda s, kind=logps: logps_from_scores(s, mask, 0.5, kind), (scores,))
    assert gradcheck(lambda s: log1mexp(-s), (scores,))
