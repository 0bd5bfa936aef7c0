"""RankPOLoss: worked values, the identities with DPO and cross-entropy, and changes that must not matter."""

from __future__ import annotations

from math import log

import pytest
import torch
from torch import float64, tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from rankpo.losses.maths import candidate_kl
from rankpo.losses.rankpo import RankPOLoss
from rankpo.types import Labels
from tests.losses.tables import FIXED, assert_values, labels
from tests.losses.tables import SCORES as FIVE

SCORES = tensor([[0.7, 0.5], [0.1, 0.4], [0.2, 0.2]], dtype=float64)  # in order, reversed, tied
REFERENCE = tensor([[0.6, 0.5], [0.3, 0.4], [0.2, 0.25]], dtype=float64)


def loss(**keys) -> RankPOLoss:
    return RankPOLoss(**{"beta": 2.0, "temperature": 0.1, **keys})


@pytest.mark.parametrize(
    ("keys", "free", "against_reference"),
    [
        ({}, (0.0181499, 6.0024757, 0.6931472), (0.1269280, 4.0181499, 0.3132617)),
        ({"margin": 0.5}, (0.0485874, 7.0009115, 1.3132617), (0.3132617, 5.0067153, 0.6931472)),
        ({"gamma_beta_ratio": 0.5}, (0.0485874, 7.0009115, 1.3132617), (0.3132617, 5.0067153, 0.6931472)),
        ({"label_smoothing": 0.1}, (0.4181499, 5.4024757, 0.6931472), (0.3269280, 3.6181499, 0.4132617)),
        ({"kind": "hinge"}, (0.0, 7.0, 1.0), (0.0, 5.0, 0.0)),
        ({"kind": "hinge", "margin": 0.5}, (0.0, 8.0, 2.0), (0.0, 6.0, 1.0)),
    ],
)
def test_golden_values(keys, free, against_reference):
    """A = .2, -.3, 0 alone and .1, -.2, .05 against the reference; βA/τ = 4, -6, 0 and 2, -4, 1; a margin takes 1."""
    assert_values(loss(reference_free=True, **keys)(SCORES, labels(3)).losses, *free)
    assert_values(loss(**keys)(SCORES, labels(3), REFERENCE).losses, *against_reference)


def test_metrics_by_hand():
    output = loss(margin=0.5)(SCORES, labels(3), REFERENCE)
    assert_close(output.metrics["rewards/chosen"], tensor([2.0, -4.0, 0.0], dtype=float64))
    assert_close(output.metrics["rewards/rejected"], tensor([0.0, 0.0, -1.0], dtype=float64))
    assert_close(output.metrics["rewards/margins"], tensor([2.0, -4.0, 1.0], dtype=float64))
    assert output.metrics["rewards/accuracies"].tolist() == [1, 0, 1]
    assert_close(output.metrics["scores/chosen"], SCORES[:, 0])
    assert_close(output.metrics["scores/rejected"], SCORES[:, 1])
    assert output.metrics["scores/accuracies"].tolist() == [1, 0, 0]
    free = loss(reference_free=True)(SCORES, labels(3))
    assert_close(free.metrics["rewards/chosen"], 20 * SCORES[:, 0])
    assert not any(value.requires_grad for value in loss()(_live(SCORES), labels(3), REFERENCE).metrics.values())


def test_sft_is_its_own_term():
    output = loss(sft_weight=0.3)(SCORES, labels(3), REFERENCE)
    assert_values(output.terms["sft"].losses, 0.1269280, 3.0485874, 0.6931472)
    assert output.terms["sft"].scale == 0.3
    assert_close(output.losses, loss()(SCORES, labels(3), REFERENCE).losses)


def test_rankpo_weight_scales_the_preference():
    expected = 0.25 * loss()(SCORES, labels(3), REFERENCE).losses
    output = loss(rankpo_weight=0.25)(SCORES, labels(3), REFERENCE)
    assert_close(output.losses, expected)
    assert_close(output.metrics["loss/preference"], expected)


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        ({}, {"loss"}),
        ({"sft_weight": 0.1}, {"loss", "sft"}),
        ({"kl_weight": 0.1, "kl_temperature": 0.1}, {"loss", "kl"}),
        ({"sft_weight": 0.1, "kl_weight": 0.1, "kl_temperature": 0.1}, {"loss", "sft", "kl"}),
    ],
)
def test_weights_are_those_of_the_output_and_name_only_what_is_on(keys, names):
    known = labels(3, confidence=[0.95, 0.6, 1.0])
    weighted = loss(confidence="weight", **keys)
    weights, output = weighted.weights(known), weighted(SCORES, known, REFERENCE)
    assert set(weights) == names == {"loss", *output.terms}
    assert output.weights is not None
    assert_close(output.weights, weights["loss"])
    for name, term in output.terms.items():
        assert_close(term.weights, weights[name])
    if "kl" in names:
        assert weights["kl"].tolist() == [1, 1, 1]
    if "sft" in names:
        assert_close(weights["sft"], weights["loss"])


def test_confidence_as_weight():
    """(.9·.1269280 + .2·4.0181499 + 1·.3132617)/2.1 = .5862509, against a plain mean of 1.4861132."""
    known = labels(3, confidence=[0.95, 0.6, 1.0])
    output = loss(confidence="weight")(SCORES, known, REFERENCE)
    assert output.weights is not None
    assert_close(output.weights, tensor([0.9, 0.2, 1.0], dtype=float64))
    assert_values((output.losses * output.weights).sum() / output.weights.sum(), 0.5862509)
    assert_values(loss()(SCORES, known, REFERENCE).losses.mean(), 1.4861132)
    outside = loss(confidence="weight").weights(labels(2, confidence=[0.3, 1.2]))["loss"]
    assert outside.tolist() == [0, 1]


def test_confidence_as_smoothing():
    known = labels(3, confidence=[0.95, 0.6, 1.0])
    assert_values(loss(confidence="smoothing")(SCORES, known, REFERENCE).losses, 0.2269280, 2.4181499, 0.3132617)


def test_smoothing_has_its_optimum_at_the_confidence():
    gap = torch.full((1,), 0.5 * log(0.8 / 0.2) * 0.1, dtype=float64)  # βz = 2·gap/.1 = log(.8/.2), so σ = .8
    scores = torch.stack([gap, torch.zeros_like(gap)], 1).requires_grad_()
    losses = loss(confidence="smoothing", reference_free=True)(scores, labels(1, confidence=[0.8])).losses
    (gradient,) = torch.autograd.grad(losses.sum(), scores)
    assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)


def test_confidence_as_margin():
    """Margin .1 + .5·(2c - 1) = .55, .2, .6."""
    known = labels(3, confidence=[0.95, 0.6, 1.0])
    output = loss(confidence="margin", confidence_scale=0.5, margin=0.1)(SCORES, known, REFERENCE)
    each = [loss(margin=margin)(SCORES, known, REFERENCE).losses[i] for i, margin in enumerate([0.55, 0.2, 0.6])]
    assert_close(output.losses, torch.stack(each))


def test_kl_over_all_candidates_and_the_pair_from_the_first_two():
    scores = tensor([[0.7, 0.5, 0.4, 9.0]], dtype=float64)
    fixed = tensor([[0.6, 0.5, 0.45, 1.0]], dtype=float64)
    known = Labels(torch.zeros(1, 4), tensor([[True, True, True, False]]), torch.ones(1))
    output = loss(kl_weight=0.5, kl_temperature=0.1)(scores, known, fixed)
    assert_values(output.losses, 0.1269280)
    assert_values(output.terms["kl"].losses, 0.1470677)
    assert_values(output.metrics["kl/candidates"], 0.1470677)
    assert output.terms["kl"].scale == 0.5
    reverse = loss(kl_weight=0.5, kl_temperature=0.1, kl_direction="reverse")(scores, known, fixed)
    assert_values(reverse.terms["kl"].losses, 0.1173125)


def test_kl_needs_the_reference_that_the_preference_leaves_out():
    both = loss(reference_free=True, kl_weight=1.0, kl_temperature=0.2)
    assert (
        "reference" in both.needs and "reference" in loss().needs and "reference" not in loss(reference_free=True).needs
    )
    output = both(SCORES, labels(3), REFERENCE)
    assert_close(output.losses, loss(reference_free=True)(SCORES, labels(3)).losses)
    expected = candidate_kl(SCORES, REFERENCE, torch.ones(3, 2, dtype=torch.bool), 0.2, "forward")
    assert_close(output.terms["kl"].losses, expected)


def test_step_0_with_a_reference():
    """ln 2, or 1 for the hinge, and a gradient of -+.5·β/τ = -+10 whatever the order of the pair."""
    scores = _live(SCORES)
    output = loss(sft_weight=0.0, kl_weight=1.0, kl_temperature=0.1)(scores, labels(3), SCORES)
    (gradient,) = torch.autograd.grad(output.losses.sum(), scores, retain_graph=True)
    assert_values(output.losses, *[0.6931472] * 3)
    assert_close(gradient, tensor([[-10.0, 10.0]] * 3, dtype=float64))
    (of_kl,) = torch.autograd.grad(output.terms["kl"].losses.sum(), scores)
    assert_close(of_kl, torch.zeros_like(of_kl), atol=1e-12, rtol=0)
    assert_values(loss(kind="hinge")(SCORES, labels(3), SCORES).losses, 1, 1, 1)


def test_step_0_in_half_precision_is_computed_in_float32():
    scores = SCORES.to(torch.bfloat16)
    output = loss()(scores, labels(3), scores)
    assert output.losses.dtype == torch.float32
    assert_close(output.losses, torch.full((3,), log(2)), atol=1e-6, rtol=0)


def test_is_dpo_at_temperature_1_and_margin_0():
    direct = -(0.3 * (FIVE - FIXED)).log_softmax(1)[:, 0]  # 2305.18290 eq. 7 by a route that shares no line
    assert_close(RankPOLoss(beta=0.3, temperature=1.0)(FIVE, labels(5), FIXED).losses, direct)


@pytest.mark.parametrize("kind", ["sigmoid", "hinge"])
def test_only_beta_over_temperature_matters_without_margin(kind):
    left = RankPOLoss(beta=2.0, temperature=0.1, kind=kind)(FIVE, labels(5), FIXED)
    right = RankPOLoss(beta=20.0, temperature=1.0, kind=kind)(FIVE, labels(5), FIXED)
    assert_close(left.losses, right.losses)


def test_sft_is_reference_free_at_beta_1():
    sft = loss(sft_weight=1.0)(FIVE, labels(5), FIXED).terms["sft"].losses
    assert_close(sft, RankPOLoss(beta=1.0, temperature=0.1, reference_free=True)(FIVE, labels(5)).losses)
    assert_close(sft, -(FIVE / 0.1).log_softmax(1)[:, 0])


def test_smoothing_adds_a_straight_line():
    """(1 - ε)ℓ(x) + εℓ(-x) = ℓ(x) + εx."""
    gap = 20 * ((FIVE - FIXED)[:, 0] - (FIVE - FIXED)[:, 1])
    smooth = loss(label_smoothing=0.1)(FIVE, labels(5), FIXED).losses
    assert_close(smooth, loss()(FIVE, labels(5), FIXED).losses + 0.1 * gap)


@pytest.mark.parametrize("keys", [{}, {"reference_free": True}, {"kind": "hinge"}, {"kl_direction": "reverse"}])
def test_a_constant_per_query_and_padding_change_nothing(keys):
    full = loss(sft_weight=0.5, kl_weight=0.5, kl_temperature=0.1, margin=0.2, **keys)
    plain = full(SCORES, labels(3), REFERENCE)
    shift = tensor([[5.0], [-2.0], [1.0]], dtype=float64)
    shifted = full(SCORES + shift, labels(3), REFERENCE - 2 * shift)
    mask = tensor([[True, True, False]] * 3)
    pad = torch.full((3, 1), 8.0, dtype=float64)
    padded_labels = Labels(torch.zeros(3, 3), mask, torch.ones(3))
    padded = full(torch.cat([SCORES, pad], 1), padded_labels, torch.cat([REFERENCE, -pad], 1))
    for other in (shifted, padded):
        assert_close(other.losses, plain.losses)
        assert_close(other.terms["sft"].losses, plain.terms["sft"].losses)
        assert_close(other.terms["kl"].losses, plain.terms["kl"].losses)


@pytest.mark.parametrize("keys", [{}, {"reference_free": True}, {"label_smoothing": 0.1, "margin": 0.3}])
def test_gradients(keys):
    full = RankPOLoss(beta=1.5, temperature=0.5, sft_weight=0.4, kl_weight=0.6, kl_temperature=0.5, **keys)

    def total(scores):
        output = full(scores, labels(5), FIXED)
        return output.losses + sum(term.scale * term.losses for term in output.terms.values())

    assert gradcheck(total, (_live(FIVE),))


def test_reference_gets_no_gradient():
    fixed = _live(REFERENCE)
    output = loss(kl_weight=1.0, kl_temperature=0.1)(_live(SCORES), labels(3), fixed)
    (output.losses.sum() + output.terms["kl"].losses.sum()).backward()
    assert fixed.grad is None


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"beta": 0.0}, "beta must be > 0, got 0.0"),
        ({"temperature": -0.1}, "temperature must be > 0, got -0.1"),
        ({"kind": "hing"}, "kind must be one of sigmoid, hinge, got 'hing'"),
        ({"margin": -1.0}, "margin must be >= 0, got -1.0"),
        ({"label_smoothing": 0.5}, r"label_smoothing must be in \[0, 0.5\), got 0.5"),
        ({"label_smoothing": 0.1, "kind": "hinge"}, "label_smoothing must be 0 with kind=hinge, got 0.1"),
        ({"margin": 0.5, "gamma_beta_ratio": 0.4}, "margin=0.5 and gamma_beta_ratio=0.4"),
        ({"gamma_beta_ratio": -0.4}, "margin must be >= 0, got -0.4"),
        ({"sft_weight": -1.0}, "sft_weight must be >= 0, got -1.0"),
        ({"rankpo_weight": 0.0}, "rankpo_weight, sft_weight and prior_weight are all 0"),
        ({"confidence": "high"}, "confidence must be one of none, weight, smoothing, margin, got 'high'"),
        ({"confidence": "smoothing", "kind": "hinge"}, "confidence=smoothing needs .* got kind=hinge"),
        ({"confidence": "smoothing", "label_smoothing": 0.1}, "confidence=smoothing needs .* label_smoothing=0.1"),
        ({"confidence_scale": 0.0}, "confidence_scale must be > 0, got 0.0"),
        ({"kl_weight": 0.1}, "kl_weight=0.1 needs kl_temperature"),
        ({"kl_weight": 0.1, "kl_temperature": 0.0}, "kl_temperature must be > 0, got 0.0"),
        ({"kl_direction": "both"}, "kl_direction must be one of forward, reverse, got 'both'"),
        ({"replay_weight": 0.5}, "replay_weight=0.5 needs replay_temperature"),
        ({"matryoshka_dims": (8, 8)}, r"matryoshka_dims must be distinct integers >= 1, got \[8, 8\]"),
    ],
)
def test_errors_name_field_and_value(keys, message):
    with pytest.raises(ValueError, match=message):
        loss(**keys)


def test_errors_of_the_call():
    with pytest.raises(ValueError, match="RankPOLoss needs reference scores"):
        loss()(SCORES, labels(3))
    with pytest.raises(ValueError, match=r"needs scores \[B, 2\] \(chosen, rejected\), got shape \[3, 1\]"):
        loss(reference_free=True)(SCORES[:, :1], labels(3, 1))


def test_two_names_of_the_margin_may_agree():
    assert loss(margin=0.5, gamma_beta_ratio=0.5) == loss(margin=0.0, gamma_beta_ratio=0.5)


def _live(values):
    return values.clone().requires_grad_()
