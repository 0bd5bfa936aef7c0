"""TDPO and Ra-DPO: the design's tables, which way gradients flow, and DPO where nothing diverges."""

from __future__ import annotations

from dataclasses import replace
from math import log

import pytest
import torch
from torch import float64, tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from rankpo.losses.dpo import DPOLoss
from rankpo.losses.token_preference import RaDPOLoss, TDPOLoss
from tests.losses.tables import LENGTHS, LOGPS, REFERENCE, assert_values, labels
from tests.losses.test_risk import PI, P

ONE = labels(1)
FIXED = tensor([[-3.0, -4.0]], dtype=float64)
RATIOS = tensor([[1.0, -0.5]], dtype=float64)  # u
SUMS = tensor([[0.4, 0.9]], dtype=float64)  # K


@pytest.mark.parametrize(
    ("arguments", "value", "gradient"),
    [
        ({"variant": 1}, 0.6443967, (-0.0475021, 0.0475021)),
        ({"variant": 2}, 0.6325990, (0.0, 0.0234395)),
        ({"variant": 2, "alpha": 1.0}, 0.6443967, (0.0, 0.0475021)),
        ({"if_tdpo2": True}, 0.6325990, (0.0, 0.0234395)),
        ({"if_tdpo2": False}, 0.6443967, (-0.0475021, 0.0475021)),
    ],
)
def test_golden_values_and_gradients(arguments, value, gradient):
    """dL/dK_w is there in the first variant only; the design's sign: raising K_w lowers the loss."""
    sums = SUMS.clone().requires_grad_()
    output = TDPOLoss(**arguments)(FIXED + RATIOS, ONE, FIXED, divergences={"kl": sums})
    assert_values(output.losses, value)
    (got,) = torch.autograd.grad(output.losses.sum(), sums, materialize_grads=True)
    assert_values(got, *gradient)


@pytest.mark.parametrize(
    ("arguments", "first", "second"),
    [
        ({"divergence": "kl"}, 0.6451938, 0.6439859),
        ({"divergence": "cvar", "confidence_level": 0.95}, 0.6463364, 0.6445562),
        ({"divergence": "erm", "erm_mu": 1.0}, 0.6476341, 0.6452035),
        ({"divergence": "published_code", "published_split": False}, 0.6471236, 0.6449490),
    ],
)
def test_sequences_of_five_words(arguments, first, second):
    """Chosen: one position (p, π), label word 1. Rejected: two such positions, labels word 2. So S_l = 2 S_w."""
    policy = torch.stack([PI[0], 2 * PI[1]])[None]
    fixed = torch.stack([P[0], 2 * P[1]])[None]
    for variant, value in ((1, first), (2, second)):
        loss = RaDPOLoss(variant=variant, **arguments)
        sums = {name: measure(P, PI) * tensor([[1.0, 2.0]]) for name, measure in loss.measures.items()}
        assert_values(loss(policy, ONE, fixed, divergences=sums).losses, value)


@pytest.mark.parametrize("variant", [1, 2])
def test_without_divergence_both_are_dpo(variant):
    none = torch.zeros(2, 2, dtype=float64)
    expected = DPOLoss(beta=0.3)(LOGPS, labels(2), REFERENCE).losses
    tdpo = TDPOLoss(beta=0.3, variant=variant)(LOGPS, labels(2), REFERENCE, divergences={"kl": none})
    risk = RaDPOLoss(beta=0.3, variant=variant)(LOGPS, labels(2), REFERENCE, divergences={"risk": none, "kl": none + 7})
    assert_close(tdpo.losses, expected)
    assert_close(risk.losses, expected)


def test_step_0():
    none = {"risk": torch.zeros(2, 2), "kl": torch.zeros(2, 2)}
    assert_close(RaDPOLoss()(LOGPS, labels(2), LOGPS, divergences=none).losses, tensor([log(2)] * 2, dtype=float64))


def test_cvar_at_1_is_tdpo():
    loss = RaDPOLoss(confidence_level=1.0)
    assert_close(loss.measures["risk"](P, PI), TDPOLoss().measures["kl"](P, PI))


def test_metrics_by_hand():
    """u = (1, -.5), K = (.4, .9); the authors' accuracy compares 1.4 with .4."""
    metrics = TDPOLoss()(FIXED + RATIOS, ONE, FIXED, divergences={"kl": SUMS}).metrics
    assert_values(metrics["rewards/margins"], 0.15)
    assert_values(metrics["kl/chosen"], 0.4)
    assert_values(metrics["kl/margins"], -0.5)
    assert metrics["kl/accuracies"].tolist() == [1]
    known = replace(ONE, lengths=LENGTHS[:1])
    assert_values(TDPOLoss()(FIXED + RATIOS, known, FIXED, divergences={"kl": SUMS}).metrics["logps/chosen"], -2.0)
    far = TDPOLoss()(FIXED + RATIOS, ONE, FIXED, divergences={"kl": SUMS * 4}).metrics
    assert far["kl/accuracies"].tolist() == [0]  # 1 + 1.6 < -.5 + 3.6
    risky = RaDPOLoss()(FIXED + RATIOS, ONE, FIXED, divergences={"risk": SUMS, "kl": SUMS / 2}).metrics
    assert_values(risky["risk/rejected"], 0.9)
    assert_values(risky["kl/rejected"], 0.45)


@pytest.mark.parametrize("loss", [TDPOLoss(), TDPOLoss(variant=2)], ids=repr)
def test_gradcheck(loss):
    sums = torch.rand(2, 2, dtype=float64)
    assert gradcheck(
        lambda s: loss(s, labels(2), REFERENCE, divergences={"kl": sums}).losses, LOGPS.clone().requires_grad_()
    )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TDPOLoss(variant=3), "variant must be 1 or 2, got 3"),
        (lambda: RaDPOLoss(if_ra_dpo2=False, variant=2), "if_ra_dpo2=False and variant=2 contradict"),
        (lambda: RaDPOLoss(confidence_level=0.0), "confidence_level must be > 0, got 0.0"),
        (lambda: TDPOLoss()(LOGPS, labels(2), REFERENCE), "TDPOLoss needs divergences over the vocabulary"),
    ],
)
def test_errors_name_field_and_value(build, message):
    with pytest.raises(ValueError, match=message):
        build()
