"""The losses on pairs beside TRL's numbers, recorded on 2026-11-21 from TRL 1.16.0.

Its `DPOTrainer._compute_loss` has no function of log-probabilities: the lines from `delta_score = …` on were run by
themselves on the inputs below, in float64; `CPOTrainer.cpo_loss` and `ORPOTrainer.odds_ratio_loss` (whose value is the
loss's negative preference term) were called. TRL's bco_pair has no δ, its hinge and ipo are those of HALOs' names.
"""

from __future__ import annotations

import pytest
from torch import float64, tensor
from torch.testing import assert_close

from rankpo.losses.dpo import DPOLoss, EXOLoss, IPOLoss, RobustDPOLoss
from rankpo.losses.log_ratio import APODownLoss, APOZeroLoss, BCOLoss, NCALoss, SPPOLoss
from rankpo.losses.reference_free import CPOLoss, ORPOLoss, SimPOLoss, SLiCLoss
from tests.losses.tables import labels

LOGPS = tensor([[-7.25, -9.5], [-31.5, -28.75], [-2.125, -40.0]], dtype=float64)
REFERENCE = tensor([[-8.0, -8.75], [-30.25, -30.5], [-2.5, -33.0]], dtype=float64)
LENGTHS = tensor([[3, 5], [11, 9], [2, 16]])

RECORDED = {
    "sigmoid": (DPOLoss(beta=0.1, logps="none"), (0.62095705, 0.85435524, 0.39089832)),
    "hinge": (DPOLoss(beta=0.05, kind="hinge", logps="none"), (0.925, 1.15, 0.63125)),
    "ipo": (IPOLoss(beta=0.2), (4.41, 7.88531782, 3.515625)),
    "exo_pair": (EXOLoss(beta=0.1, label_smoothing=0.001), (2.50551656, 3.28651161, 1.60617114)),
    "exo_pair .1": (EXOLoss(beta=0.3, label_smoothing=0.1), (0.29241227, 1.06617691, 0.00001041)),
    "nca_pair": (NCALoss(beta=0.01, logps="none"), (1.38255842, 1.3938428, 1.36816569)),
    "robust": (RobustDPOLoss(beta=0.1, label_smoothing=0.1), (0.60220705, 0.89185524, 0.29871082)),
    "bco_pair": (BCOLoss(beta=0.05, logps="none"), (1.3491459, 1.46273929, 1.21719828)),
    "sppo_hard": (SPPOLoss(beta=0.1, logps="none"), (36.125, 84.625, 25.390625)),
    "apo_zero": (APOZeroLoss(beta=0.1, logps="none"), (0.96251757, 1.07484806, 0.82243833)),
    "apo_down": (APODownLoss(beta=0.1, logps="none"), (0.98131137, 1.04323314, 0.83292497)),
    "cpo": (CPOLoss(beta=0.1, alpha=0.0, logps="none"), (0.586962, 0.84007067, 0.02239941)),
    # their gamma, 1.375, is divided by beta: our margin
    "simpo": (SimPOLoss(beta=2.5, margin=0.55), (2.73384244, 1.00421187, 0.1032287)),
    # their hinge on log-probabilities is β times slic's calibration term with δ = 1/β
    "cpo hinge": (SLiCLoss(delta=10.0, lambda_=0.0, logps="none"), (7.75, 12.75, 0.0)),
}


@pytest.mark.parametrize("name", RECORDED)
def test_agrees_with_trl(name):
    loss, expected = RECORDED[name]
    reference = REFERENCE if "reference" in loss.needs else None
    losses = loss(LOGPS, labels(3, lengths=LENGTHS), reference).losses
    assert_close(losses, tensor(expected, dtype=float64), atol=1e-6, rtol=0)


def test_orpos_preference_term_agrees_with_trl():
    metrics = ORPOLoss(lambda_=0.1, logps="none")(LOGPS, labels(3, lengths=LENGTHS)).metrics
    assert_close(
        metrics["loss/preference"], tensor([0.10279741, 0.053433, 0.01564359], dtype=float64), atol=1e-6, rtol=0
    )
