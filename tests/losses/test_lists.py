"""Losses on lists: the golden table, a naive loop per query in float64, masks, permutations, empty lists, identities."""

from __future__ import annotations

import json
from itertools import permutations
from math import e, exp, inf, log, log2, nan

import pytest
import torch
from torch import float64, tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from rankpo.data.readers.ranked_lists import RankedLists
from rankpo.losses.distillation import KLDistillLoss, MarginMSELoss
from rankpo.losses.lambda_loss import LambdaLoss
from rankpo.losses.lists import list_metrics, ordered_lists, positions
from rankpo.losses.listwise import ADRMSELoss, ListMLELoss, ListNetLoss, PlackettLuceLoss, PListMLELoss, SoftmaxLoss
from rankpo.losses.mixture import MixtureLoss
from rankpo.losses.pointwise import PointwiseLoss
from rankpo.losses.ranknet import RankNetLoss
from rankpo.losses.rankpo import RankPOLoss
from rankpo.losses.reduction import denominators, total
from rankpo.types import Labels
from tests.losses import naive_lists
from tests.losses.tables import assert_values

S = tensor([[2.0, 1.0, 0.0, -1.0]], dtype=float64)


def lists(*relevance, teacher=None, mask=None):
    """Labels of B lists; nothing masked and no teacher unless given."""
    y = tensor(relevance, dtype=float64)
    known = torch.ones_like(y, dtype=torch.bool) if mask is None else tensor(mask)
    taught = None if teacher is None else tensor(teacher, dtype=float64)
    return Labels(relevance=y, mask=known, confidence=torch.ones(len(y)), teacher=taught)


A, B, C, D = [1, 0, 0, 0], [3, 1, 0, 0], [3, 2, 1, 0], [0, 0, 1, 3]
GOLDEN = [
    (PointwiseLoss(), [A, [1, 0.5, 0, 0], [0.9, 0.5, 0.2, 0]], [0.6116496, 0.4866496, 0.5366496]),
    (PointwiseLoss(kind="mse"), [A, [1, 0.5, 0, 0], [0.9, 0.5, 0.2, 0]], [0.2177464, 0.0974817, 0.0540216]),
    (RankNetLoss(), [A, B, C], [0.1629257, 0.1857933, 0.2070381]),
    (RankNetLoss(weight="difference"), [A, B], [0.1629257, 0.3186518]),
    (RankNetLoss(weight="rank"), [[4, 3, 2, 1], [3, 4, 2, 1], [1, 2, 3, 4]], [0.0457381, 0.1032817, 0.3973254]),
    (ListNetLoss(), [A, B, C], [1.4894559, 0.7513628, 0.9475370]),
    (ListNetLoss(targets="nonzero"), [A, B, [-1, -2, -3, -4]], [0.4401897, 0.5593926, 0.9475370]),
    (SoftmaxLoss(), [A, [0, 0, 1, 0], [1, 1, 0, 0], B], [0.4401897, 2.4401897, 0.9401897, 0.6901897]),
    (ListMLELoss(), [[4, 3, 2, 1], [3, 4, 2, 1], [1, 2, 3, 4]], [1.1610574, 1.9232974, 7.1610574]),
    (PlackettLuceLoss(first=1), [[3, 4, 2, 1]], [1.4401897]),
    (PlackettLuceLoss(first=2), [[3, 4, 2, 1]], [1.6100357]),
    (PlackettLuceLoss(first=3), [[3, 4, 2, 1]], [1.9232974]),
    (PListMLELoss(), [[4, 3, 2, 1], [3, 4, 2, 1], [1, 2, 3, 4]], [0.4197643, 0.9912843, 2.9652189]),
    (ADRMSELoss(), [C, A, [0, 1, 2, 3]], [0.0718749, 0.1860046, 2.5714844]),
    (LambdaLoss(scheme="none"), [A, B, D], [0.2350521, 0.2680431, 2.8648942]),
    (LambdaLoss(scheme="lambdarank"), [A, B, D], [0.0994216, 0.0528612, 0.6394933]),
    (LambdaLoss(scheme="ndcg2"), [A, B, D], [0.0652110, 0.0365200, 0.2684635]),
    (LambdaLoss(), [A, B, D], [0.7515316, 0.4180609, 3.3241279]),
    (LambdaLoss(scheme="ndcg1"), [A, B, D], [0.0587630, 0.0713342, 0.3377643]),
    (LambdaLoss(k=2), [D, B, C], [2.7548296, 0.4180609, 0.3200368]),
]


@pytest.mark.parametrize(("loss", "relevance", "values"), GOLDEN, ids=repr)
def test_golden_values(loss, relevance, values):
    output = loss(S.expand(len(values), -1), lists(*relevance))
    assert_values(output.losses, *values)
    assert "teacher" not in loss.needs and "reference" not in loss.needs


def test_golden_values_of_distillation():
    for loss, teacher, value in [
        (KLDistillLoss(), [3, 1, 0, 0], 0.0792844),
        (KLDistillLoss(), [3, 2, 1, 0], 0.0),
        (KLDistillLoss(temperature=2.0, teacher_temperature=2.0), [3, 1, 0, 0], 0.0288375),
        (KLDistillLoss(temperature=2.0, teacher_temperature=2.0, scale_by_t2=True), [3, 1, 0, 0], 4 * 0.02883749),
        (MarginMSELoss(), [5, 3, 1, 0], 3.0),
        (MarginMSELoss(), [9, 7, 5, 4], 3.0),
    ]:
        assert "teacher" in loss.needs
        assert_values(loss(S, lists(A, teacher=[teacher])).losses, value, atol=1e-7)


def test_ranknet_gradient():
    scores = S.clone().requires_grad_()
    RankNetLoss()(scores, lists(A)).losses.sum().backward()
    assert_values(scores.grad, -0.1451901, 0.0896471, 0.0397343, 0.0158086)


def test_first_joint_objective():
    """L_generation 2 + 10 · ranknet by ranks [2, 1, 3, 4]."""
    assert_values(2 + 10 * RankNetLoss(weight="rank")(S, lists([3, 4, 2, 1])).losses, 3.0328168, atol=1e-7)


# three lists of different length in one batch, with ties in the labels and scores of any sign
SCORES = tensor([[0.3, -1.2, 2.0, 0.4, 9.0], [-3.0, -1.0, -2.5, -0.2, -1.7], [0.9, 0.1, 7.0, -8.0, 5.0]], dtype=float64)
MASK = [[True] * 4 + [False], [True] * 5, [True, True, False, False, False]]
RELEVANCE = [[0.0, 1.0, 0.5, 0.0, 0.7], [0.25, 0.5, 1.0, 0.75, 0.0], [1.0, 0.0, 0.3, 0.2, 0.1]]
TEACHER = [[0.1, 3.0, 1.5, -0.4, 8.0], [0.3, -0.5, 2.0, 1.1, 0.0], [1.0, 0.2, 4.0, -3.0, 2.0]]
LABELS = lists(*RELEVANCE, teacher=TEACHER, mask=MASK)
LOSSES = [
    (PointwiseLoss(temperature=0.7, positive_weight=2.0), naive_lists.pointwise_bce),
    (PointwiseLoss(temperature=0.7, kind="mse"), naive_lists.pointwise_mse),
    (RankNetLoss(temperature=0.7), naive_lists.ranknet),
    (RankNetLoss(temperature=0.7, weight="rank"), naive_lists.ranknet_by_rank),
    (RankNetLoss(temperature=0.7, weight="difference"), naive_lists.ranknet_by_difference),
    (LambdaLoss(temperature=0.7), naive_lists.ndcg2pp),
    (LambdaLoss(temperature=0.7, k=2, scheme="lambdarank", log="e"), naive_lists.lambdarank_at_2),
    (LambdaLoss(temperature=0.7, scheme="ndcg1"), naive_lists.ndcg1),
    (ListNetLoss(temperature=0.7, target_temperature=0.5), naive_lists.listnet),
    (SoftmaxLoss(temperature=0.7), naive_lists.softmax),
    (ListMLELoss(temperature=0.7, reduction="mean"), naive_lists.listmle_mean),
    (PListMLELoss(temperature=0.7), naive_lists.plistmle),
    (PlackettLuceLoss(temperature=0.7, first=2, beta=0.8), naive_lists.plackett_luce),
    (ADRMSELoss(temperature=0.7, alpha=1.5), naive_lists.adr_mse),
    (MarginMSELoss(temperature=0.7), naive_lists.margin_mse),
    (MarginMSELoss(temperature=0.7, pairs="all"), naive_lists.margin_mse_all),
    (KLDistillLoss(temperature=0.7, teacher_temperature=2.0), naive_lists.kl_distill),
]
NAMES = [repr(loss) for loss, _ in LOSSES]
UNSHIFTED = (PointwiseLoss,)


@pytest.mark.parametrize(("loss", "naive"), LOSSES, ids=NAMES)
def test_equals_a_loop_per_query_in_value_and_gradient(loss, naive):
    scores = SCORES.clone().requires_grad_()
    output = loss(scores, LABELS)
    (gradient,) = torch.autograd.grad(output.losses.sum(), scores)
    for b in range(3):
        kept = [g for g in range(5) if MASK[b][g]]
        own = SCORES[b, kept].clone().requires_grad_()
        value = naive(own / 0.7, [RELEVANCE[b][g] for g in kept], [TEACHER[b][g] for g in kept])
        assert_close(output.losses[b].detach(), value.detach())
        (expected,) = torch.autograd.grad(value, own)
        assert_close(gradient[b, kept], expected)
    assert (gradient[~LABELS.mask] == 0).all()


@pytest.mark.parametrize("loss", [loss for loss, _ in LOSSES], ids=NAMES)
def test_gradcheck(loss):
    assert gradcheck(lambda scores: loss(scores, LABELS).losses, (SCORES.clone().requires_grad_(),))


@pytest.mark.parametrize("loss", [loss for loss, _ in LOSSES], ids=NAMES)
def test_order_of_candidates_padding_and_constants_change_nothing(loss):
    plain = loss(SCORES, LABELS)
    order = tensor([3, 0, 4, 2, 1])
    # tied labels may change places; only listmle's order of equal ones is that of the columns
    free = [1, 2] if isinstance(loss, ListMLELoss | PListMLELoss) else [0, 1, 2]
    moved = Labels(LABELS.relevance[:, order], LABELS.mask[:, order], torch.ones(3), LABELS.teacher[:, order])
    assert_close(loss(SCORES[:, order], moved).losses[free], plain.losses[free])
    for junk in (0.0, 1e9, nan, inf):
        pad = torch.full((3, 2), junk, dtype=float64)
        padded = Labels(
            torch.cat([LABELS.relevance, torch.ones(3, 2)], 1),
            torch.cat([LABELS.mask, torch.zeros(3, 2, dtype=torch.bool)], 1),
            torch.ones(3),
            torch.cat([LABELS.teacher, pad], 1),
        )
        wide = torch.cat([SCORES, pad], 1).requires_grad_()
        output = loss(wide, padded)
        assert_close(output.losses, plain.losses)
        output.losses.sum().backward()
        assert torch.isfinite(wide.grad[:, :5]).all()
    if not isinstance(loss, UNSHIFTED):
        assert_close(loss(SCORES + tensor([[5.0], [-2.0], [1.0]]), LABELS).losses, plain.losses)


@pytest.mark.parametrize("loss", [loss for loss, _ in LOSSES], ids=NAMES)
def test_empty_lists_have_no_value_no_gradient_and_no_weight(loss):
    """All equal, one candidate, all masked, beside a list that teaches."""
    scores = tensor([[1.0, 2.0, 3.0], [4.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.3, 0.1, 0.2]], dtype=float64)
    scores.requires_grad_()
    relevance = [[0.0] * 3, [1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.5]]
    teacher = [[0.5] * 3, [1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.5]]
    mask = [[True] * 3, [True, False, False], [False] * 3, [True] * 3]
    known = lists(*relevance, teacher=teacher, mask=mask)
    output = loss(scores, known)
    output.losses.sum().backward()
    assert torch.isfinite(output.losses).all() and torch.isfinite(scores.grad).all()
    # a pointwise loss learns from lone candidates, distillation from a teacher who finds all alike
    learns_from_equal = isinstance(loss, PointwiseLoss | KLDistillLoss) or getattr(loss, "pairs", "") == "all"
    used = [learns_from_equal, isinstance(loss, PointwiseLoss), False, True]
    assert_close(loss.weights(known)["loss"] > 0, tensor(used))
    assert_close(output.weights, loss.weights(known)["loss"])
    assert_close(output.metrics["scores/empty"], 1.0 - tensor(used, dtype=float64))
    for b, is_used in enumerate(used):
        assert (scores.grad[b] != 0).any() == is_used
        assert is_used or output.losses[b] == 0
    assert torch.isfinite(total(output, denominators(loss, known)))
    nothing = Labels(known.relevance[2:3], known.mask[2:3], torch.ones(1), known.teacher[2:3])
    assert total(loss(scores[2:3], nothing), denominators(loss, nothing)) == 0


@pytest.mark.parametrize("loss", [loss for loss, _ in LOSSES], ids=NAMES)
def test_large_scores_stay_finite_and_half_precision_is_left(loss):
    scores = tensor([[1000.0, -1000.0, 0.0, 500.0]], requires_grad=True)
    known = lists([0.0, 1.0, 0.5, 0.25], teacher=[[0.0, 1.0, 0.5, 0.25]])
    loss(scores, known).losses.sum().backward()
    assert torch.isfinite(scores.grad).all()
    # inside autocast and from bfloat16 the loss is that of float32 on the same numbers
    half = SCORES.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        output = loss(half, LABELS).losses
    assert output.dtype == torch.float32
    assert_close(output.double(), loss(half.double(), LABELS).losses, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss", [loss for loss, _ in LOSSES], ids=NAMES)
def test_targets_are_constants(loss):
    """Defect 8: own logits as targets, with gradient, gave LambdaRank no loss at negative scores."""
    relevance, teacher = LABELS.relevance.clone().requires_grad_(), LABELS.teacher.clone().requires_grad_()
    scores = (SCORES - 20).requires_grad_()
    output = loss(scores, Labels(relevance, LABELS.mask, torch.ones(3), teacher))
    output.losses.sum().backward()
    assert relevance.grad is None and teacher.grad is None
    assert (scores.grad.abs().sum(1) > 0).all() or isinstance(loss, PointwiseLoss)
    assert not any(value.requires_grad for value in output.metrics.values())


def test_tied_labels_make_no_pair_and_tied_scores_still_teach():
    scores = torch.zeros(1, 3, dtype=float64, requires_grad=True)
    output = RankNetLoss()(scores, lists([1, 1, 0]))
    output.losses.sum().backward()
    assert_values(output.losses, log(2))
    assert_close(scores.grad, tensor([[-0.25, -0.25, 0.5]], dtype=float64))  # two pairs, each (-.5, .5)/2


def test_all_orders_of_plackett_luce_sum_to_one():
    scores = tensor([[0.3, -1.0, 2.0, 0.7]], dtype=float64)
    likelihoods = [ListMLELoss()(scores, lists(list(order))).losses.neg().exp() for order in permutations(range(4))]
    assert_values(torch.stack(likelihoods).sum(), 1.0, atol=1e-12)


@pytest.mark.parametrize("from_rank", ["reciprocal", "linear"])
def test_an_order_that_a_judge_wrote(tmp_path, from_rank):
    """Scores 1, 0, 2 of passages in the order 2 > 0 > 1: log(e² + e + 1) - 2 + log(e + 1) - 1, whatever the relevance."""
    path = tmp_path / "lists.jsonl"
    orders = [{"query": "q", "passages": ["a", "b", "c"], "ranking": [2, 0, 1]}, {"query": "r", "passages": ["a", "b"],
              "ranking": [1, 0]}]  # fmt: skip
    path.write_text("".join(json.dumps(record) + "\n" for record in orders))
    three, two = RankedLists(name="r", path=str(path), relevance_from_rank=from_rank).examples()
    scores, pair = tensor([[1.0, 0.0, 2.0]], dtype=float64), tensor([[0.2, 0.5]], dtype=float64)
    by_hand = log(exp(2) + exp(1) + 1) - 2 + log(exp(1) + 1) - 1
    assert_values(PlackettLuceLoss()(scores, lists(three.relevance)).losses, by_hand)
    assert_values(PlackettLuceLoss()(pair, lists(two.relevance)).losses, log(1 + exp(0.2 - 0.5)))  # Bradley-Terry
    grades = {"reciprocal": [1 / 2, 1 / 3, 1], "linear": [1 / 2, 0, 1]}[from_rank]
    wanted = [exp(grade / 0.5) / sum(exp(other / 0.5) for other in grades) for grade in grades]
    logs = [score - log(exp(2) + exp(1) + 1) for score in (1, 0, 2)]
    listnet = ListNetLoss(target_temperature=0.5)(scores, lists(three.relevance)).losses
    assert_values(listnet, -sum(share * value for share, value in zip(wanted, logs, strict=True)))


def test_plackett_luce_of_two_with_a_reference_is_dpo():
    scores, reference = tensor([[0.7, 0.5], [0.1, 0.4]]).double(), tensor([[0.6, 0.5], [0.3, 0.4]]).double()
    loss = PlackettLuceLoss(reference_free=False, beta=0.3, temperature=0.5)
    assert "reference" in loss.needs
    dpo = RankPOLoss(beta=0.3, temperature=0.5)
    pairs = lists([1, 0], [1, 0])
    assert_close(loss(scores, pairs, reference).losses, dpo(scores, pairs, reference).losses)
    with pytest.raises(ValueError, match="needs reference scores"):
        loss(scores, pairs)


def test_one_pair_is_reference_free_rankpo():
    scores = tensor([[0.7, 0.5], [0.1, 0.4], [0.2, 0.2]]).double()
    pairs = lists([1, 0], [1, 0], [1, 0])
    expected = RankPOLoss(beta=1.0, temperature=1.0, reference_free=True)(scores, pairs).losses
    for loss in (RankNetLoss(), SoftmaxLoss(), ListMLELoss(), LambdaLoss(scheme="none", log="e")):
        assert_close(loss(scores, pairs).losses, expected)


def test_ranknet_is_lambdarank_without_weights():
    assert_close(LambdaLoss(scheme="none")(SCORES, LABELS).losses * log(2), RankNetLoss()(SCORES, LABELS).losses)


def test_listnet_of_the_teacher_is_kl_and_entropy():
    entropy = []
    for b in range(3):
        values = [TEACHER[b][g] for g in range(5) if MASK[b][g]]
        p = [exp(v) / sum(map(exp, values)) for v in values]
        entropy.append(-sum(x * log(x) for x in p))
    listnet = ListNetLoss(target="teacher")(SCORES, LABELS).losses
    assert_close(listnet, KLDistillLoss()(SCORES, LABELS).losses + tensor(entropy, dtype=float64))


def test_a_constant_added_to_the_teacher_changes_nothing():
    other = Labels(LABELS.relevance, LABELS.mask, torch.ones(3), LABELS.teacher + tensor([[5.0], [-2.0], [1.0]]))
    for loss in (KLDistillLoss(), MarginMSELoss(), MarginMSELoss(pairs="all")):
        assert_close(loss(SCORES, other).losses, loss(SCORES, LABELS).losses)


def test_values_with_all_scores_equal():
    flat = torch.zeros(1, 4, dtype=float64)
    assert_values(RankNetLoss()(flat, lists(C)).losses, log(2))
    assert_values(ListMLELoss()(flat, lists(C)).losses, log(24))
    assert_values(RankNetLoss(weight="rank")(flat, lists(C)).losses, 0.1493567)


def test_plistmle_of_a_long_list_is_finite():
    scores = torch.randn(1, 200, requires_grad=True)
    PListMLELoss()(scores, lists(list(range(200)))).losses.sum().backward()
    assert torch.isfinite(scores.grad).all() and (scores.grad != 0).any()


def test_the_update_of_a_pointwise_loss_depends_on_its_pairs_alone():
    """Six pairs as one list of 6, as 2 + 4 padded, and as six lists: one mean."""
    s = tensor([0.5, -1.0, 2.0, 0.1, -0.3, 1.2], dtype=float64)
    y = tensor([1.0, 0.0, 0.5, 0.0, 1.0, 0.2], dtype=float64)
    loss, values = PointwiseLoss(), []
    for sizes in ([6], [2, 4], [1] * 6):
        width = max(sizes)
        scores, relevance = (torch.zeros(len(sizes), width, dtype=float64) for _ in range(2))
        mask = torch.zeros(len(sizes), width, dtype=torch.bool)
        start = 0
        for b, size in enumerate(sizes):
            scores[b, :size], relevance[b, :size] = s[start : start + size], y[start : start + size]
            mask[b, :size] = True
            start += size
        known = Labels(relevance, mask, torch.ones(len(sizes)))
        values.append(total(loss(scores, known), denominators(loss, known)))
    assert_close(torch.stack(values), values[0].repeat(3))


def test_pooled_pairs_weigh_long_lists_more():
    """One list with 1 pair of loss ℓ(1), one with 3 of ℓ(-1), ℓ(-1), ℓ(-2): the mean of four, not of two means."""
    scores = tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 2.0]], dtype=float64)
    known = lists([1, 0, 0], [2, 1, 0], mask=[[True, True, False], [True] * 3])
    pairs = [log(1 + exp(x)) for x in (-1, 1, 1, 2)]
    for loss, unit in ((RankNetLoss(pool_pairs=True), 1), (LambdaLoss(scheme="none", pool_pairs=True), log(2))):
        assert_values(total(loss(scores, known), denominators(loss, known)) * unit, sum(pairs) / 4)
    plain = RankNetLoss()
    means = (pairs[0] + sum(pairs[1:]) / 3) / 2
    assert_values(total(plain(scores, known), denominators(plain, known)), means)


def test_mixture_has_a_denominator_for_each_term():
    """The second list is empty for the labels, not for the teacher."""
    known = lists([1, 0], [0, 0], teacher=[[1.0, 0.0], [0.0, 2.0]])
    scores = tensor([[0.5, 0.0], [1.0, 0.0]], dtype=float64)
    loss = MixtureLoss(
        losses={"labels": RankNetLoss(), "teacher": MarginMSELoss(pairs="all")},
        term_weights={"labels": 0.25, "teacher": 2.0},
    )
    assert "teacher" in loss.needs and "reference" not in loss.needs
    assert denominators(loss, known) == {"loss": 1.0, "teacher": 2.0}
    expected = 0.25 * log(1 + exp(-0.5)) + 2 * (0.5**2 + 3.0**2) / 2
    assert_values(total(loss(scores, known), denominators(loss, known)), expected, atol=1e-7)


def test_metrics_by_hand():
    """Order by score 2, 0, 3, 1 with relevance 1, 2, 0, 0; candidate 4 is masked. One pair, (0, 2), is wrong…"""
    scores = tensor([[2.0, 0.5, 3.0, 0.5, 9.0]], dtype=float64)
    y, mask = tensor([[1.0, 2.0, 0.0, 0.0, 5.0]], dtype=float64), tensor([[True] * 4 + [False]])
    told = ordered_lists(y, mask)
    metrics = list_metrics(scores, y, mask, told, graded=True)
    # pairs: (1,0) wrong, (1,2) wrong, (1,3) tied, (0,2) wrong, (0,3) right
    assert_values(metrics["scores/accuracies"], 1 / 5)
    assert_values(metrics["scores/ties"], 1 / 5)
    assert_values(metrics["scores/top1"], 0.0)
    # a tie goes against the more relevant: order 2, 0, 3, 1
    assert_close(positions(scores, y, mask), tensor([[2, 4, 1, 3, 5]]))
    assert_values(metrics["ndcg@10"], (1 / log2(3) + 3 / log2(5)) / (3 + 1 / log2(3)))
    best = list_metrics(tensor([[1.0, 2.0, 0.0, 0.0, 9.0]]).double(), y, mask, told, graded=True)
    assert_values(best["ndcg@10"], 1.0)
    assert_values(best["scores/top1"], 1.0)
    constant = list_metrics(torch.zeros(1, 5, dtype=float64), y, mask, told, graded=True)
    assert constant["ndcg@10"] < 0.75 and constant["scores/top1"] == 0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RankNetLoss(temperature=0.0), "temperature must be > 0, got 0.0"),
        (lambda: RankNetLoss(target="labels"), "target must be one of relevance, teacher, got 'labels'"),
        (lambda: RankNetLoss(weight="gap"), "weight must be one of none, difference, rank, got 'gap'"),
        (lambda: PointwiseLoss(kind="ce"), "kind must be one of bce, mse, got 'ce'"),
        (lambda: PointwiseLoss(positive_weight=0.0), "positive_weight must be > 0, got 0.0"),
        (lambda: PointwiseLoss(kind="mse", positive_weight=2.0), "positive_weight must be 1 with kind=mse, got 2.0"),
        (lambda: LambdaLoss(scheme="ndcg3"), "scheme must be one of none, lambdarank, .* got 'ndcg3'"),
        (lambda: LambdaLoss(log="10"), "log must be one of 2, e, got '10'"),
        (lambda: LambdaLoss(mu=0.0), "mu must be > 0, got 0.0"),
        (lambda: LambdaLoss(k=0), "k must be >= 1 or null, got 0"),
        (lambda: LambdaLoss(k=5, pool_pairs=True), "pool_pairs=true counts pairs by labels, but k=5"),
        (lambda: ListNetLoss(targets="some"), "targets must be one of all, nonzero, got 'some'"),
        (lambda: ListNetLoss(target_temperature=-1.0), "target_temperature must be > 0, got -1.0"),
        (lambda: ListMLELoss(reduction="max"), "reduction must be one of sum, mean, got 'max'"),
        (lambda: PlackettLuceLoss(first=0), "first must be >= 1 or null, got 0"),
        (lambda: PlackettLuceLoss(beta=0.0), "beta must be > 0, got 0.0"),
        (lambda: ADRMSELoss(alpha=0.0), "alpha must be > 0, got 0.0"),
        (lambda: MarginMSELoss(pairs="best"), "pairs must be one of positive, all, got 'best'"),
        (lambda: KLDistillLoss(teacher_temperature=0.0), "teacher_temperature must be > 0, got 0.0"),
        (lambda: MixtureLoss(losses={"a": RankNetLoss()}, term_weights={"a": 1.0}), "losses must name two or more"),
        (
            lambda: MixtureLoss(losses={"a": RankNetLoss(), "b": SoftmaxLoss()}, term_weights={"a": 1.0}),
            "term_weights must have the names of losses, a, b, got a",
        ),
    ],
)
def test_errors_name_field_and_value(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("loss", "relevance", "message"),
    [
        (PointwiseLoss(), [2.0, 0.0], r"needs a relevance in \[0, 1\], got 2"),
        (LambdaLoss(), [-1.0, 0.0], r"needs a relevance in \[0, 30\] .* got -1"),
        (LambdaLoss(), [31.0, 0.0], r"needs a relevance in \[0, 30\] .* got 31"),
        (SoftmaxLoss(), [-1.0, 1.0], "needs a relevance >= 0, got -1"),
        (KLDistillLoss(), [1.0, 0.0], "KLDistillLoss needs teacher scores, but the data has none"),
    ],
)
def test_errors_of_the_data_come_before_any_forward_pass(loss, relevance, message):
    with pytest.raises(ValueError, match=message):
        loss.weights(lists(relevance))


def test_float32_labels_keep_what_float16_loses():
    """Defect 5: .9998 is not 1."""
    known = Labels(tensor([[0.9998, 0.0]]), torch.ones(1, 2, dtype=torch.bool), torch.ones(1))
    value = PointwiseLoss()(tensor([[12.0, -12.0]]), known).losses.double()
    exact = (0.9998 * log(1 + e**-12) + 0.0002 * log(1 + e**12) + log(1 + e**-12)) / 2
    assert_close(value, tensor([exact], dtype=float64), rtol=1e-3, atol=0)  # float16 gives 6e-6 for .0012


@pytest.mark.parametrize("scheme", ["lambdarank", "ndcg1", "ndcg2", "ndcg2pp"])
def test_raw_gains_of_scaled_grades(scheme):
    """Grades 3, 1, 0 scaled to 1, 1/3, 0: with grade_scale=3 the loss and ndcg@10 are those of the raw grades."""
    raw, scaled = lists([3, 1, 0, 0]), lists([1, 1 / 3, 0, 0])
    scores = S.flip(1)
    expected = LambdaLoss(scheme=scheme)(scores, raw)
    found = LambdaLoss(scheme=scheme, grade_scale=3.0)(scores, scaled)
    assert_close(found.losses, expected.losses)
    assert_close(found.metrics["ndcg@10"], expected.metrics["ndcg@10"])
    flat = LambdaLoss(scheme=scheme)(scores, scaled)
    assert (flat.losses - expected.losses).abs() > 1e-3
    assert (flat.metrics["ndcg@10"] - expected.metrics["ndcg@10"]).abs() > 1e-3


def test_a_mixture_refuses_what_it_would_lose():
    """rankpo's kl is a term of its own: a weighted sum of main terms would leave it out."""
    both = {"a": RankNetLoss(), "b": RankPOLoss(beta=1.0, temperature=1.0, sft_weight=1.0)}
    mixture = MixtureLoss(losses=both, term_weights={"a": 1.0, "b": 1.0})
    with pytest.raises(ValueError, match=r"losses.b has further terms \(sft\), which a mixture does not support"):
        mixture.weights(lists([1, 0]))
    with pytest.raises(ValueError, match=r"losses\.m is a mixture; list"):
        MixtureLoss(losses={"m": mixture, "a": RankNetLoss()}, term_weights={"m": 1.0, "a": 1.0})
