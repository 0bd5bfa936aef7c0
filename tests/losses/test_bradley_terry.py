"""The reward model's loss: by hand, and where it is another loss."""

from __future__ import annotations

import pytest
from torch import float64, tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from rankpo.losses.bradley_terry import BradleyTerryLoss
from rankpo.losses.rankpo import RankPOLoss
from tests.losses.tables import SCORES, assert_values, labels


def test_margin_by_hand():
    """ℓ(1.5 - .5) and ℓ(-3 - .5) = 3.5 + log(1 + e^-3.5)."""
    scores = tensor([[2.0, 0.5], [-1.0, 2.0]], dtype=float64)
    output = BradleyTerryLoss(margin=0.5)(scores, labels(2))
    assert_values(output.losses, 0.3132617, 3.5297504)
    assert_values(output.metrics["rewards/margins"], 1.5, -3.0)


def test_centering_by_hand():
    """ℓ(1.5) + .01 · .9²."""
    scores = tensor([[1.2, -0.3]], dtype=float64)
    assert_values(BradleyTerryLoss(center=0.01)(scores, labels(1)).losses, 0.2095133)


def test_is_rankpo_without_reference_at_beta_1():
    other = RankPOLoss(beta=1.0, temperature=0.5, reference_free=True)
    loss = BradleyTerryLoss(temperature=0.5)
    assert "reference" not in loss.needs
    assert_close(loss(SCORES, labels(5)).losses, other(SCORES, labels(5)).losses)


def test_gradcheck():
    loss = BradleyTerryLoss(margin=0.3, center=0.1, temperature=0.7)
    assert gradcheck(lambda s: loss(s, labels(5)).losses, SCORES.clone().requires_grad_())


@pytest.mark.parametrize("name", ["margin", "center"])
def test_error_names_field_and_value(name):
    with pytest.raises(ValueError, match=f"{name} must be >= 0, got -1.0"):
        BradleyTerryLoss(**{name: -1.0})
