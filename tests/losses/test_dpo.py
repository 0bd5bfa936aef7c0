"""DPO and the losses of the gap: the golden table, step 0, the identities between them, gradients."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from torch import float64, tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from rankpo.losses.dpo import CDPOLoss, DPOLoss, EXOLoss, IPOLoss, RobustDPOLoss
from tests.losses.tables import FIXED, LENGTHS, LOGPS, REFERENCE, SCORES, assert_values, labels

GAPS = (SCORES - FIXED)[:, 0] - (SCORES - FIXED)[:, 1]


@pytest.mark.parametrize(
    ("loss", "pair_1", "pair_2"),
    [
        (DPOLoss(), 0.6209570, 0.8543552),
        (DPOLoss(kind="hinge"), 0.85, 1.3),
        (CDPOLoss(), 0.6509570, 0.7943552),
        (DPOLoss(label_smoothing=0.2), 0.6509570, 0.7943552),
        (RobustDPOLoss(), 0.6022070, 0.8918552),
        (IPOLoss(lengths="sum"), 12.25, 64.0),
        (EXOLoss(), 2.5055166, 3.2865116),
        (EXOLoss(label_smoothing=0.1), 0.4313885, 0.6855172),
    ],
)
def test_golden_values(loss, pair_1, pair_2):
    """D = 1.5 and -3, β = .1."""
    assert "reference" in loss.needs
    assert_values(loss(LOGPS, labels(2), REFERENCE).losses, pair_1, pair_2)


def test_ipo_with_means():
    """(1/4 + .5/5 - 5)² = 4.65² = 21.6225; (-2/8 - 1/5 - 5)² = 5.45² = 29.7025; without lengths as with sums."""
    output = IPOLoss()(LOGPS, labels(2, lengths=LENGTHS), REFERENCE)
    assert_values(output.losses, 21.6225, 29.7025)
    assert_values(IPOLoss()(LOGPS, labels(2), REFERENCE).losses, 12.25, 64.0)
    assert_values(IPOLoss(lengths="sum")(LOGPS, labels(2, lengths=LENGTHS), REFERENCE).losses, 12.25, 64.0)
    assert_close(output.metrics["rewards/chosen"], tensor([0.025, -0.025], dtype=float64))  # what the loss compares
    assert_close(output.metrics["logps/chosen"], LOGPS[:, 0])


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        (DPOLoss(), log(2)),
        (CDPOLoss(), log(2)),
        (RobustDPOLoss(), log(2)),
        (DPOLoss(kind="hinge"), 1.0),
        (IPOLoss(), 25.0),
        (EXOLoss(), 2.7612307),
        (EXOLoss(label_smoothing=0.1), 0.5108256),
    ],
)
def test_step_0(loss, value):
    assert_close(loss(LOGPS, labels(2), LOGPS).losses, tensor([value] * 2, dtype=float64), atol=5.1e-8, rtol=0)


def test_metrics_by_hand():
    """h = (1, -.5), (-2, 1); β/τ = .1/.5 = .2."""
    metrics = DPOLoss(temperature=0.5)(LOGPS.clone().requires_grad_(), labels(2), REFERENCE).metrics
    assert_close(metrics["rewards/chosen"], tensor([0.2, -0.4], dtype=float64))
    assert_close(metrics["rewards/rejected"], tensor([-0.1, 0.2], dtype=float64))
    assert_close(metrics["rewards/margins"], tensor([0.3, -0.6], dtype=float64))
    assert metrics["rewards/accuracies"].tolist() == [1, 0]
    assert_close(metrics["scores/margins"], tensor([2.0, -5.0], dtype=float64))
    assert not any(value.requires_grad for value in metrics.values())
    tied = DPOLoss()(LOGPS, labels(2), LOGPS).metrics
    assert tied["rewards/accuracies"].tolist() == [0, 0]  # strictly, as in TRL
    assert "logps/chosen" in DPOLoss()(LOGPS, labels(2, lengths=LENGTHS), REFERENCE).metrics


def test_temperature_divides():
    assert_close(
        DPOLoss(beta=0.4, temperature=2.0)(SCORES, labels(5), FIXED).losses,
        DPOLoss(beta=0.2)(SCORES, labels(5), FIXED).losses,
    )


def test_sft_term():
    """Candidates: log(1 + e^-(s_w - s_l)/τ); none: -lp_w/length = 12/4, 20/8."""
    loss = DPOLoss(sft_weight=0.3, temperature=0.1)
    output = loss(SCORES, labels(5), FIXED)
    assert_close(output.terms["sft"].losses, -(SCORES / 0.1).log_softmax(1)[:, 0])
    assert output.terms["sft"].scale == 0.3
    assert set(loss.weights(labels(5))) == {"loss", "sft"}
    assert set(DPOLoss().weights(labels(5))) == {"loss"} and not DPOLoss()(SCORES, labels(5), FIXED).terms
    tokens = DPOLoss(sft_weight=1.0, logps="none")(LOGPS, labels(2, lengths=LENGTHS), REFERENCE)
    assert_values(tokens.terms["sft"].losses, 3.0, 2.5)


def test_robust_is_unbiased_under_flips():
    """(1 - ε)·robust(D) + ε·robust(-D) = dpo(D)."""
    robust = RobustDPOLoss(label_smoothing=0.3)
    right = robust(SCORES, labels(5), FIXED).losses
    flipped = robust(SCORES.flip(1), labels(5), FIXED.flip(1)).losses
    assert_close(0.7 * right + 0.3 * flipped, DPOLoss()(SCORES, labels(5), FIXED).losses)


def test_hinge_is_slic_calibration_at_delta_1_over_beta():
    hinge = DPOLoss(beta=0.4, kind="hinge")(SCORES, labels(5), FIXED).losses
    assert_close(hinge, 0.4 * (1 / 0.4 - GAPS).clamp(min=0))
    assert hinge[3] == 0


def test_smoothed_minimum_is_where_the_label_says():
    """Both have their minimum at σ(βD) = 1 - ε; exo is exactly 0 there, and nowhere negative."""
    gap = log(0.8 / 0.2) / 0.1
    scores = tensor([[gap, 0.0]], dtype=float64, requires_grad=True)
    zeros = torch.zeros(1, 2, dtype=float64)
    for loss in (CDPOLoss(), EXOLoss(label_smoothing=0.2)):
        (gradient,) = torch.autograd.grad(loss(scores, labels(1), zeros).losses.sum(), scores)
        assert_close(gradient, zeros, atol=1e-12, rtol=0)
    assert_close(
        EXOLoss(label_smoothing=0.2)(scores, labels(1), zeros).losses.detach(), zeros[:, 0], atol=1e-12, rtol=0
    )
    assert (EXOLoss(beta=2.0, label_smoothing=0.2)(SCORES, labels(5), FIXED).losses > 0).all()


def test_exo_is_a_divergence():
    """KL of (σ(z), σ(-z)) from (1 - ε, ε), with z = .15."""
    p = 1 / (1 + exp(-0.15))
    expected = p * log(p / 0.9) + (1 - p) * log((1 - p) / 0.1)
    assert_values(EXOLoss(label_smoothing=0.1)(LOGPS[:1], labels(1), REFERENCE[:1]).losses, expected)


LOSSES = [
    DPOLoss(sft_weight=0.5),
    CDPOLoss(),
    RobustDPOLoss(),
    DPOLoss(kind="hinge"),
    IPOLoss(),
    EXOLoss(),
]


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_constant_per_query_and_the_order_of_queries_change_nothing(loss):
    plain = loss(SCORES, labels(5), FIXED).losses
    shift = torch.arange(5, dtype=float64)[:, None]
    assert_close(loss(SCORES + shift, labels(5), FIXED - 2 * shift).losses, plain)
    assert_close(loss(SCORES.flip(0), labels(5), FIXED.flip(0)).losses.flip(0), plain)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_gradients(loss):
    fixed = FIXED.clone().requires_grad_()
    assert gradcheck(lambda scores: loss(scores, labels(5), FIXED).losses, (SCORES.clone().requires_grad_(),))
    loss(SCORES.clone().requires_grad_(), labels(5), fixed).losses.sum().backward()
    assert fixed.grad is None


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DPOLoss(beta=0.0), "beta must be > 0, got 0.0"),
        (lambda: DPOLoss(temperature=0.0), "temperature must be > 0, got 0.0"),
        (lambda: DPOLoss(kind="ipo"), "kind must be one of sigmoid, hinge, got 'ipo'"),
        (lambda: DPOLoss(kind="hinge", label_smoothing=0.1), "label_smoothing must be 0 with kind=hinge, got 0.1"),
        (lambda: DPOLoss(sft_weight=-0.1), "sft_weight must be >= 0, got -0.1"),
        (lambda: DPOLoss(logps="mean"), "logps must be one of auto, candidates, sigmoid, none, got 'mean'"),
        (lambda: CDPOLoss(label_smoothing=0.5), r"label_smoothing must be in \[0, 0.5\), got 0.5"),
        (lambda: RobustDPOLoss(label_smoothing=0.5), r"label_smoothing must be in \[0, 0.5\), got 0.5"),
        (lambda: RobustDPOLoss(kind="hinge", label_smoothing=0.0), "kind must be one of sigmoid, got 'hinge'"),
        (lambda: EXOLoss(label_smoothing=0.0), "label_smoothing must be > 0, got 0.0"),
        (lambda: EXOLoss(label_smoothing=0.5), r"label_smoothing must be in \[0, 0.5\), got 0.5"),
        (lambda: IPOLoss(lengths="max"), "lengths must be one of mean, sum, got 'max'"),
        (lambda: DPOLoss()(SCORES, labels(5)), "DPOLoss needs reference scores"),
    ],
)
def test_errors_name_field_and_value(build, message):
    with pytest.raises(ValueError, match=message):
        build()
