"""Every loss on scores at the extremes: gaps that float32 cannot square, masked NaN and inf, half precision, no token.

The truth is the same formula in float64, where gaps of this size have digits to spare; for ORPO it is the closed form.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan

import pytest
import torch
from torch import Tensor, float64, tensor
from torch.testing import assert_close

from rankpo.losses.base import Loss
from rankpo.losses.bradley_terry import BradleyTerryLoss
from rankpo.losses.contrastive import ContrastiveLoss
from rankpo.losses.distillation import KLDistillLoss, MarginMSELoss
from rankpo.losses.dpo import CDPOLoss, DPOLoss, EXOLoss, IPOLoss, RobustDPOLoss
from rankpo.losses.grpo import GRPOLoss
from rankpo.losses.lambda_loss import SCHEMES, LambdaLoss
from rankpo.losses.listwise import ADRMSELoss, ListMLELoss, ListNetLoss, PlackettLuceLoss, PListMLELoss, SoftmaxLoss
from rankpo.losses.listwise_lm import ListwiseLMLoss
from rankpo.losses.log_ratio import APODownLoss, APOZeroLoss, BCOLoss, NCALoss, SPPOLoss
from rankpo.losses.maths import candidate_log_odds
from rankpo.losses.pointwise import PointwiseLoss
from rankpo.losses.ppo import PolicyTokens
from rankpo.losses.ranknet import RankNetLoss
from rankpo.losses.rankpo import RankPOLoss
from rankpo.losses.reduction import total
from rankpo.losses.reference_free import CPOLoss, ORPOLoss, SimPOLoss, SLiCLoss
from rankpo.losses.sft import SFTLoss
from rankpo.types import Labels

WITH_LOGPS = (APOZeroLoss, APODownLoss, BCOLoss, CPOLoss, DPOLoss, NCALoss, ORPOLoss, SLiCLoss, SPPOLoss)
PAIRS: dict[str, Loss] = {
    **{f"{kind.__name__}, {logps}": kind(logps=logps) for kind in WITH_LOGPS for logps in ("candidates", "sigmoid")},
    "dpo with sft": DPOLoss(logps="sigmoid", sft_weight=1.0),
    "hinge": DPOLoss(kind="hinge"),
    "cdpo": CDPOLoss(label_smoothing=0.2),
    "robust_dpo": RobustDPOLoss(label_smoothing=0.1),
    "exo": EXOLoss(),
    "ipo": IPOLoss(),
    "simpo": SimPOLoss(),
    "bradley-terry": BradleyTerryLoss(),
    **{
        f"rankpo, {way}": RankPOLoss(
            beta=1.0, temperature=1.0, reference_free=False, kl_weight=1.0, kl_temperature=1.0, kl_direction=way
        )
        for way in ("forward", "reverse")
    },
}
LISTS: dict[str, Loss] = {
    "listnet": ListNetLoss(),
    "listwise_ce": ListNetLoss(targets="nonzero"),
    "softmax": SoftmaxLoss(),
    "listmle": ListMLELoss(),
    "plistmle": PListMLELoss(),
    "plackett_luce": PlackettLuceLoss(first=1),
    "plackett_luce with reference": PlackettLuceLoss(reference_free=False),
    "adr_mse": ADRMSELoss(),
    **{f"ranknet, {weight}": RankNetLoss(weight=weight) for weight in ("none", "difference", "rank")},
    **{f"lambdaloss, {scheme}": LambdaLoss(scheme=scheme) for scheme in SCHEMES},
    "lambdaloss@1": LambdaLoss(k=1),
    "pointwise": PointwiseLoss(),
    "pointwise mse": PointwiseLoss(kind="mse"),
    "margin_mse": MarginMSELoss(),
    "margin_mse, all": MarginMSELoss(pairs="all"),
    "kl_distill": KLDistillLoss(),
    "contrastive, own": ContrastiveLoss(temperature=0.05, negatives="own"),
}
POLICIES: dict[str, Loss] = {f"grpo, {logps}": GRPOLoss(logps=logps, beta=0.1) for logps in ("candidates", "sigmoid")}
EVERY = {**PAIRS, **LISTS, **POLICIES}
RELEVANCE = tensor([[1.0, 0.0, 0.5]])


def labels(relevance: Tensor, mask: Tensor, teacher: Tensor) -> Labels:
    return Labels(relevance=relevance, mask=mask, confidence=torch.ones(len(relevance)).to(relevance), teacher=teacher)


def value_and_gradient(loss: Loss, scores: Tensor, known: Labels, reference: Tensor) -> tuple[Tensor, Tensor]:
    leaf = scores.clone().requires_grad_()
    output = loss(leaf, known, reference)
    value = total(output, {name: 1.0 for name in ("loss", *output.terms)})
    value.backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


def at(dtype: torch.dtype, loss: Loss, scores: Tensor) -> tuple[Tensor, Tensor]:
    """With the labels RELEVANCE, a teacher of three times those, and a reference of -1 everywhere."""
    scores = scores.to(dtype)
    relevance = RELEVANCE[:, : scores.shape[1]].to(dtype)
    known = labels(relevance, torch.ones_like(scores, dtype=torch.bool), 3 * relevance)
    return value_and_gradient(loss, scores, known, -torch.ones_like(scores))


@pytest.mark.parametrize("name", {**PAIRS, **LISTS})
@pytest.mark.parametrize("gap", [8.0, 16.0, 17.0, 30.0, 60.0, 88.0, 100.0, 200.0, 1e4])
def test_float32_follows_float64_at_any_gap(name, gap):
    """Both orders of the pair, and both far below, at and far above 0: only gaps matter to most losses."""
    for chosen, rejected in ((gap, 0.0), (-gap, 0.0), (-gap, -2 * gap), (gap, 2 * gap), (-2 * gap, -gap)):
        third = [chosen / 2] if name in LISTS else []
        scores = tensor([[chosen, rejected, *third]])
        value, gradient = at(torch.float32, EVERY[name], scores)
        expected, slope = at(float64, EVERY[name], scores)
        assert_close(value.double(), expected, rtol=1e-6, atol=1e-6)
        assert_close(gradient.double(), slope, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("gap", [16.0, 30.0, 1e4])
def test_orpo_by_hand_where_a_probability_rounds_to_1(gap):
    """Two candidates: o_w - o_l = 2Δ. With Δ = -gap, the loss is nll + λ·2·gap and its slope in Δ -(1 + 2λ)."""
    scores = tensor([[0.0, gap]], requires_grad=True)
    output = ORPOLoss(lambda_=0.3)(scores, labels(RELEVANCE[:, :2], torch.ones(1, 2, dtype=torch.bool), scores))
    output.losses.sum().backward()
    assert_close(output.losses.detach(), tensor([gap * 1.6]), rtol=1e-6, atol=0)
    assert_close(scores.grad, tensor([[-1.6, 1.6]]), rtol=1e-5, atol=0)


def test_candidate_log_odds_are_those_of_the_softmax():
    """.5, .3, .2: ln 1, ln 3/7, ln 1/4. Masked ones are 0, and a candidate that stands alone has no odds: 0."""
    scores = tensor([[0.5, 0.3, 0.2], [0.5, nan, 0.2], [7.0, inf, nan]], dtype=float64)
    scores[:, 0::2] = scores[:, 0::2].log()
    scores[0, 1] = scores[0, 1].log()
    mask = tensor([[True, True, True], [True, False, True], [True, False, False]])
    expected = tensor([[1.0, 3 / 7, 1 / 4], [5 / 2, 1, 2 / 5], [1, 1, 1]], dtype=float64).log()
    assert_close(candidate_log_odds(scores, mask), expected)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("junk", [nan, inf, -inf, 1e30])
def test_what_stands_under_the_mask_is_never_read(name, junk):
    """In scores, relevance, reference or teacher of the masked third candidate of the first query."""
    mask = tensor([[True, True, False], [True, True, True]])
    clean = [
        tensor([[0.5, 0.2, 0.0], [0.1, 0.3, 0.2]]),
        tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.5]]),
        tensor([[0.4, 0.3, 0.0], [0.1, 0.2, 0.3]]),
        tensor([[3.0, 0.0, 0.0], [3.0, 0.0, 1.5]]),
    ]

    def results(tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
        scores, relevance, reference, teacher = tensors
        return value_and_gradient(EVERY[name], scores, labels(relevance, mask, teacher), reference)

    expected, slope = results(clean)
    for place in range(len(clean)):
        dirty = [values.clone() for values in clean]
        dirty[place][0, 2] = junk
        value, gradient = results(dirty)
        assert_close(value, expected)
        assert_close(gradient, slope)
        assert gradient[0, 2] == 0


@pytest.mark.parametrize("name", LISTS)
def test_a_list_without_an_order_teaches_nothing(name):
    """One candidate or none: loss 0, gradient 0, weight 0. A single candidate teaches the pointwise losses alone."""
    for size in (0, 1):
        mask = torch.arange(3)[None, :] < size
        if not size and isinstance(LISTS[name], ContrastiveLoss):
            continue  # a query always has a positive
        scores = tensor([[0.5, 0.2, 0.9]], requires_grad=True)
        output = LISTS[name](scores, labels(RELEVANCE, mask, 3 * RELEVANCE), torch.zeros(1, 3))
        if size and isinstance(LISTS[name], PointwiseLoss):
            continue
        output.losses.sum().backward()
        assert output.losses.item() == 0 and scores.grad is not None and not scores.grad.any()


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_read_in_float32(name, dtype):
    """Scores and references of half precision give what the same numbers give in float32, to the last digits."""
    generator = torch.Generator().manual_seed(0)
    scores, reference = (20 * torch.randn(2, 4, 3, generator=generator)).to(dtype)
    relevance = torch.rand(4, 3, generator=generator)
    known = labels(relevance, torch.ones(4, 3, dtype=torch.bool), 3 * relevance)
    value, gradient = value_and_gradient(EVERY[name], scores, known, reference)
    expected, slope = value_and_gradient(EVERY[name], scores.float(), known, reference.float())
    assert value.dtype == torch.float32
    assert_close(value, expected)
    assert_close(gradient, slope.to(dtype))


TOKENS = tensor([[0, 5], [3, 2], [4, 0]])  # an empty chosen completion, a whole pair, an empty rejected one


@pytest.mark.parametrize(
    ("loss", "weights"),
    [
        (SimPOLoss(), [0, 1, 0]),
        (IPOLoss(), [0, 1, 0]),
        (IPOLoss(lengths="sum"), [1, 1, 1]),
        (ORPOLoss(logps="none"), [0, 1, 0]),
        (CPOLoss(logps="none"), [1, 1, 1]),
        (SLiCLoss(logps="none", nll="mean"), [1, 1, 1]),
        (DPOLoss(logps="none", sft_weight=1.0), [1, 1, 1]),
        (SFTLoss(), [0, 3, 4]),
    ],
)
def test_completions_without_a_scored_token(loss, weights):
    """Their sum is 0 and has no mean: losses on means leave such a pair out, the others stay finite."""
    logps = tensor([[0.0, -4.0], [-3.0, -1.0], [-2.0, 0.0]], requires_grad=True)
    known = replace(labels(tensor([[1.0, 0.0]] * 3), torch.ones(3, 2, dtype=torch.bool), logps), lengths=TOKENS)
    output = loss(logps, known, torch.zeros(3, 2))
    assert_close(output.weights, tensor(weights, dtype=torch.float32))
    assert_close(dict(loss.weights(known))["loss"], output.weights)
    total(output, dict.fromkeys(("loss", *output.terms), 1.0)).backward()
    assert logps.grad is not None and logps.grad.isfinite().all() and output.losses.isfinite().all()
    assert not logps.grad[output.weights == 0].any()


def test_answers_without_a_token():
    answers = tensor([0.0, -6.0], requires_grad=True)
    known = replace(
        labels(tensor([[1.0, 0.0]] * 2), torch.ones(2, 2, dtype=torch.bool), answers), lengths=tensor([[0, 0], [1, 2]])
    )
    output = ListwiseLMLoss(objective="generation")(torch.zeros(2, 2), known, answer_logps=answers)
    total(output, {"loss": 3.0}).backward()
    assert_close(output.losses.detach(), tensor([0.0, 2.0]))
    assert_close(answers.grad, tensor([0.0, -1 / 3]))


def test_no_advantage_and_a_ratio_beyond_floats_is_nothing_learnt():
    """ρ = e^200 is inf in float32, and 0 · inf is NaN."""
    logps = tensor([100.0, -1.0], requires_grad=True)
    tokens = PolicyTokens(logps, tensor([-100.0, -1.0]), tensor([-100.0, -1.0]))
    output = GRPOLoss().of_tokens(tokens, tensor([0.0, 2.0]), tensor([1, 1]))
    output.losses.sum().backward()
    assert_close(output.losses.detach(), tensor([0.0, -2.0]))
    assert_close(logps.grad, tensor([0.0, -2.0]))
