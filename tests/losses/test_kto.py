"""KTO: the golden table, step 0, the reference point, weights, and its kinship with APO-zero."""

from __future__ import annotations

import pytest
import torch
from torch import float64, tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from rankpo.losses.kto import KTOLoss, KTOZeroLoss, reference_point
from rankpo.losses.log_ratio import APOZeroLoss
from rankpo.types import Labels
from tests.losses.tables import LOGPS, REFERENCE, assert_values, labels

# chosen 1, rejected 1, chosen 2, rejected 2 of the design's table: h = 1, -.5, -2, 1
ROWS, FIXED = LOGPS.reshape(4, 1), REFERENCE.reshape(4, 1)
POINT = tensor(0.3, dtype=float64)


def each(*desirable: float) -> Labels:
    relevance = tensor(desirable, dtype=float64)[:, None]
    return Labels(relevance=relevance, mask=torch.ones_like(relevance, dtype=torch.bool), confidence=relevance[:, 0])


LABELS = each(1, 0, 1, 0)


def test_golden_values():
    loss = KTOLoss()
    assert "reference" in loss.needs and loss.needs_reference_point
    assert_values(loss(ROWS, LABELS, FIXED, point=POINT).losses, 0.4825071, 0.4800107, 0.5572479, 0.5174929)


def test_kto_zero_and_a_missing_point_are_the_same():
    expected = (0.4750208, 0.4875026, 0.5498340, 0.5249792)
    assert not KTOZeroLoss().needs_reference_point
    assert_values(KTOZeroLoss()(ROWS, LABELS, FIXED).losses, *expected)
    assert_values(KTOLoss()(ROWS, LABELS, FIXED).losses, *expected)


def test_step_0():
    assert_close(KTOLoss()(ROWS, LABELS, ROWS, point=torch.zeros(())).losses, torch.full((4,), 0.5, dtype=float64))


def test_reference_point_is_the_clamped_mean_without_gradient():
    """(2 - .5 + .6)/3 = .7; a negative mean counts as 0."""
    mismatched = tensor([2.0, -0.5, 0.6], dtype=float64, requires_grad=True)
    point = reference_point(mismatched)
    assert_values(point, 0.7)
    assert not point.requires_grad
    assert reference_point(tensor([-2.0, 0.5])) == 0
    with pytest.raises(ValueError, match="at least one mismatched pair"):
        reference_point(torch.zeros(0))


def test_reference_point_is_in_units_of_the_log_ratio():
    """h = z0 gives one half whatever β is; were z0 compared with βh, it would not."""
    for beta in (0.1, 2.0):
        losses = KTOLoss(beta=beta)(ROWS[:1], each(1), FIXED[:1], point=tensor(1.0)).losses
        assert_values(losses, 0.5)


def test_weights_scale_losses_and_not_their_count():
    plain = KTOLoss()(ROWS, LABELS, FIXED, point=POINT)
    weighted = KTOLoss(desirable_weight=2.0, undesirable_weight=0.5)(ROWS, LABELS, FIXED, point=POINT)
    assert_close(weighted.losses, plain.losses * tensor([2.0, 0.5, 2.0, 0.5], dtype=float64))
    assert weighted.weights is not None and weighted.weights.tolist() == [1, 1, 1, 1]


def test_balance():
    """w_D n_D : w_U n_U = 1.5 · 2 : 1 · 3."""
    loss = KTOLoss(desirable_weight=1.5)
    assert loss.balance(2, 3) == 1.0
    assert loss.balance(0, 3) is None


def test_zero_is_apo_zero_of_the_pair():
    """One desirable and one undesirable completion of equal weight add up to the pair's loss."""
    single = KTOZeroLoss(beta=0.3)(ROWS, LABELS, FIXED).losses.reshape(2, 2).sum(1)
    assert_close(single, APOZeroLoss(beta=0.3, logps="none")(LOGPS, labels(2), REFERENCE).losses)


def test_batches_of_one_class_have_a_loss_and_empty_metrics():
    output = KTOLoss()(ROWS, each(1, 1, 1, 1), FIXED, point=POINT)
    assert torch.isfinite(output.losses).all()
    assert output.metrics["rewards/rejected"].numel() == 0
    assert_close(output.metrics["rewards/chosen"], tensor([0.1, -0.05, -0.2, 0.1], dtype=float64))


def test_temperature_divides_the_log_ratio():
    halved = KTOLoss(temperature=2.0)(ROWS, LABELS, FIXED, point=POINT).losses
    assert_close(halved, KTOLoss()(ROWS / 2, LABELS, FIXED / 2, point=POINT).losses)


def test_rerankers_log_probabilities():
    """A logit of 0 against one of log 3: σ = 1/2 against 3/4, so h = log(2/3) and σ(β(0 - h)) = (3/2)^β/(1 + (3/2)^β)."""
    scores, fixed = torch.zeros(1, 1, dtype=float64), tensor([[3.0]], dtype=float64).log()
    assert_values(KTOLoss(beta=1.0, logps="sigmoid")(scores, each(1), fixed).losses, 0.6)


def test_gradient_only_at_the_scores():
    point = tensor(0.3, dtype=float64, requires_grad=True)
    fixed = FIXED.clone().requires_grad_()
    loss = KTOLoss(beta=0.7)
    assert gradcheck(lambda s: loss(s, LABELS, fixed, point=point).losses, ROWS.clone().requires_grad_())
    loss(ROWS.clone().requires_grad_(), LABELS, fixed, point=point).losses.sum().backward()
    assert point.grad is None and fixed.grad is None


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: KTOLoss(beta=0.0), "beta must be > 0, got 0.0"),
        (lambda: KTOLoss(undesirable_weight=-1.0), "undesirable_weight must be > 0, got -1.0"),
        (lambda: KTOLoss()(LOGPS, labels(2), REFERENCE), r"needs scores \[B, 1\].*got \[2, 2\]"),
        (lambda: KTOLoss()(ROWS, LABELS), "KTOLoss needs reference scores"),
    ],
)
def test_errors_name_field_and_value(build, message):
    with pytest.raises(ValueError, match=message):
        build()
