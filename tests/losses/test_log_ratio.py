"""APO, NCA, SPPO and BCO: the golden table, step 0, win rates, reference point, gradients."""

from __future__ import annotations

from math import log

import pytest
import torch
from torch import float64, tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from rankpo.losses.dpo import DPOLoss
from rankpo.losses.log_ratio import APODownLoss, APOZeroLoss, BCOLoss, NCALoss, SPPOLoss
from rankpo.types import Labels
from tests.losses.tables import FIXED, LOGPS, REFERENCE, SCORES, assert_values, labels


@pytest.mark.parametrize(
    ("loss", "pair_1", "pair_2"),
    [
        (APOZeroLoss(logps="none"), 0.9625234, 1.0748132),
        (APODownLoss(logps="none"), 0.9875493, 1.0246085),
        (NCALoss(beta=0.1, logps="none"), 1.3508248, 1.4694066),
        (NCALoss(logps="none"), 1.3825647, 1.3938756),
        (SPPOLoss(beta=0.1, logps="none"), 36.25, 85.0),
        (BCOLoss(beta=0.1, logps="none"), 1.3128563, 1.5425355),
    ],
)
def test_golden_values(loss, pair_1, pair_2):
    """h = (1, -.5) and (-2, 1)."""
    assert "reference" in loss.needs
    assert_values(loss(LOGPS, labels(2), REFERENCE).losses, pair_1, pair_2)


def test_bco_with_a_reference_point():
    """δ = -.0125, the mean of β·h over the four completions."""
    loss = BCOLoss(beta=0.1, logps="none")
    state = {"delta": -0.0125, "num_pairs": 2.0}
    output = loss(LOGPS, labels(2), REFERENCE, state=state)
    assert_values(output.losses, 1.3130513, 1.5422637)
    means = {name: float(output.metrics[name].mean()) for name in ("rewards/chosen", "rewards/rejected")}
    assert loss.next_state(loss.initial_state(), means, 2) == pytest.approx(state)


def test_bcos_reference_point_is_the_mean_over_all_pairs_so_far():
    """Two pairs of mean reward 3, then one of mean 6: (2 · 3 + 6)/3 = 4, not (3 + 6)/2."""
    loss = BCOLoss()
    state = loss.next_state(loss.initial_state(), {"rewards/chosen": 5.0, "rewards/rejected": 1.0}, 2)
    assert state == {"delta": 3.0, "num_pairs": 2.0}
    state = loss.next_state(state, {"rewards/chosen": 8.0, "rewards/rejected": 4.0}, 1)
    assert state == pytest.approx({"delta": 4.0, "num_pairs": 3.0})


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        (APOZeroLoss(), 1.0),
        (APODownLoss(), 1.0),
        (NCALoss(), 2 * log(2)),
        (BCOLoss(), 2 * log(2)),
        (SPPOLoss(beta=0.1), 50.0),
    ],
)
def test_step_0(loss, value):
    assert_close(loss(SCORES, labels(5), SCORES).losses, torch.full((5,), value, dtype=float64))


def test_sppo_with_win_rates():
    """β .1, P .8 and .5: (h_w - 3)² + (h_l + 3)² = 4 + 6.25; h_w² + h_l² = 4 + 1."""
    known = labels(2, confidence=[0.8, 0.5])
    loss = SPPOLoss(beta=0.1, win_rate="confidence", logps="none")
    assert_values(loss(LOGPS, known, REFERENCE).losses, 10.25, 5.0)
    assert_values(SPPOLoss(beta=0.1, logps="none")(LOGPS, known, REFERENCE).losses, 36.25, 85.0)


def test_bco_without_reference_point_is_above_dpo():
    """σ(x)σ(-y) < σ(x - y)."""
    bco = BCOLoss(beta=0.5)(SCORES, labels(5), FIXED).losses
    assert (bco > DPOLoss(beta=0.5)(SCORES, labels(5), FIXED).losses).all()


def test_metrics_by_hand():
    metrics = APOZeroLoss(logps="none", temperature=0.5)(LOGPS, labels(2), REFERENCE).metrics
    assert_close(metrics["rewards/chosen"], tensor([0.2, -0.4], dtype=float64))
    assert_close(metrics["rewards/margins"], tensor([0.3, -0.6], dtype=float64))
    assert_close(metrics["scores/rejected"], LOGPS[:, 1])


LOSSES = [APOZeroLoss(), APODownLoss(), NCALoss(beta=0.1), SPPOLoss(beta=0.1), BCOLoss(beta=0.1)]


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_constant_per_query_and_padding_change_nothing_among_candidates(loss):
    plain = loss(SCORES, labels(5), FIXED).losses
    shift = torch.arange(1, 6, dtype=float64)[:, None]
    assert_close(loss(SCORES + shift, labels(5), FIXED - shift).losses, plain)
    known = Labels(torch.zeros(5, 3), tensor([[True, True, False]] * 5), torch.ones(5))
    padded = loss(torch.cat([SCORES, shift], 1), known, torch.cat([FIXED, -shift], 1)).losses
    assert_close(padded, plain)


def test_a_constant_per_query_matters_with_sigmoid_log_probabilities():
    loss = APOZeroLoss(beta=1.0, logps="sigmoid")
    moved = loss(SCORES + 1, labels(5), FIXED).losses - loss(SCORES, labels(5), FIXED).losses
    assert moved[[0, 1, 3, 4]].abs().min() > 1e-3  # pair 2 is tied in both: its two terms move by the same amount


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_gradients(loss):
    fixed = FIXED.clone().requires_grad_()
    assert gradcheck(lambda scores: loss(scores, labels(5), FIXED).losses, (SCORES.clone().requires_grad_(),))
    loss(SCORES.clone().requires_grad_(), labels(5), fixed).losses.sum().backward()
    assert fixed.grad is None


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: APOZeroLoss(beta=-0.1), "beta must be > 0, got -0.1"),
        (lambda: NCALoss(temperature=0.0), "temperature must be > 0, got 0.0"),
        (lambda: BCOLoss(logps="mean"), "logps must be one of auto, candidates, sigmoid, none, got 'mean'"),
        (lambda: SPPOLoss(win_rate="soft"), "win_rate must be one of certain, confidence, got 'soft'"),
        (lambda: APODownLoss()(SCORES, labels(5)), "APODownLoss needs reference scores"),
    ],
)
def test_errors_name_field_and_value(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("confidence", [0.0, 0.3, 0.5])
def test_sppos_doubtful_pairs_are_coin_tosses_and_never_turned_around(confidence):
    """h_w² + h_l² with h = (1, -.5): both are drawn to the reference, the chosen one not below the rejected."""
    loss = SPPOLoss(beta=0.1, logps="none", win_rate="confidence")
    assert_values(loss(LOGPS, labels(2, confidence=[confidence, 1.0]), REFERENCE).losses, 1.25, 85.0)
