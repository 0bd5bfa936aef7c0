"""Graded margin: values by hand, the margin logistic loss, a naive loop over cuts in float64, who is known, gradients."""

from __future__ import annotations

from dataclasses import replace
from math import exp, inf, log, log1p, nan

import pytest
import torch
from torch import float64, tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from rankpo.losses.contrastive import ContrastiveLoss
from rankpo.losses.graded_margin import GradedMarginLoss, graded_margin
from rankpo.types import Labels
from tests.losses.tables import assert_values
from tests.losses.test_contrastive import batch_of

OWN = GradedMarginLoss(temperature=0.5, margin=2.0, negatives="own")


def lists(*relevance, mask=None):
    grades = tensor(relevance, dtype=float64)
    known = torch.ones_like(grades, dtype=torch.bool) if mask is None else tensor(mask)
    return Labels(relevance=grades, mask=known, confidence=torch.ones(len(grades)))


def softplus(x):
    return log1p(exp(x))


def naive(scores, grades, temperature, margin):
    """One query's loss by loops over cuts, high and low passages."""
    values = []
    for cut in sorted(set(grades))[1:]:
        low = sum(exp(s / temperature) for s, g in zip(scores, grades, strict=True) if g < cut)
        high = [softplus(log(low) + margin - s / temperature) for s, g in zip(scores, grades, strict=True) if g >= cut]
        values.append(sum(high) / len(high))
    return sum(values) / len(values) if values else 0.0


def test_by_hand():
    """Grades 2, 1, 0 at s/τ = 1, 2, 0, margin 1. Cut 1: low {0}: softplus(0) and softplus(-1), mean .503204. Cut 2:
    low {2, 0}: log(e^2 + 1) = 2.126928, softplus(2.126928) = 2.239545. Mean 1.371375."""
    loss = GradedMarginLoss(temperature=0.5, margin=1.0, negatives="own")
    output = loss(tensor([[0.5, 1.0, 0.0]], dtype=float64), lists([2, 1, 0]))
    first = (log(2) + log(1 + exp(-1))) / 2
    second = log(1 + exp(1 + log(exp(2) + 1) - 1))
    assert_values(output.losses, (first + second) / 2, atol=1e-12)
    assert_values(output.losses, 1.3713746, atol=5e-7)


def test_two_grades_and_one_negative_are_a_margin_logistic_loss():
    scores = tensor([[0.7, 0.5], [0.1, 0.4], [5.0, -3.0]], dtype=float64)
    expected = [softplus(-((a - b) / 0.5 - 2.0)) for a, b in scores.tolist()]
    assert_values(OWN(scores, lists(*[[1, 0]] * 3)).losses, *expected, atol=1e-12)


def test_one_positive_and_margin_0_is_infonce():
    """softplus(log Σ e^n - p) = log(e^p + Σ e^n) - p."""
    scores = tensor([[0.7, 0.5, 0.2, 0.6], [0.1, 0.4, 0.3, 0.0]], dtype=float64)
    labels = lists([1, 0, 0, 0], [1, 0, 0, 0])
    ours = GradedMarginLoss(temperature=0.1, margin=0.0, negatives="own")(scores, labels)
    theirs = ContrastiveLoss(temperature=0.1, negatives="own")(scores, labels)
    assert_close(ours.losses, theirs.losses)


@pytest.mark.parametrize("seed", range(3))
def test_equal_to_the_loop_over_cuts(seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(6, 7, generator=generator, dtype=float64)
    grades = torch.randint(0, 4, (6, 7), generator=generator).double() / 3
    mask = torch.rand(6, 7, generator=generator) < 0.8
    grades[0] = 1.0  # all of one grade
    labels = Labels(relevance=grades.masked_fill(~mask, nan), mask=mask, confidence=torch.ones(6))
    output = OWN(scores.masked_fill(~mask, inf), labels)
    expected = [
        naive(row[keep].tolist(), of_row[keep].tolist(), 0.5, 2.0)
        for row, of_row, keep in zip(scores, grades, mask, strict=True)
    ]
    assert_values(output.losses, *expected, atol=1e-10)
    assert_close(output.weights, tensor([float(value > 0) for value in expected]))
    assert_close(OWN.weights(labels)["loss"], output.weights)


def test_shifts_and_permutations_change_nothing_and_grades_count_by_order_alone():
    scores = tensor([[0.7, 0.5, 0.2, 0.6]], dtype=float64)
    output = OWN(scores, lists([3, 0, 1, 0])).losses
    assert_close(OWN(scores + 100, lists([3, 0, 1, 0])).losses, output)
    assert_close(OWN(scores[:, [2, 0, 3, 1]], lists([1, 3, 0, 0])).losses, output)
    assert_close(OWN(scores, lists([0.9, -4, 0.5, -4])).losses, output)


def test_gradients():
    scores = torch.randn(2, 5, generator=torch.Generator().manual_seed(1), dtype=float64, requires_grad=True)
    labels = lists([2, 1, 1, 0, 0], [0, 0, 3, 3, 1], mask=[[True] * 5, [True, True, False, True, True]])
    assert gradcheck(lambda s: OWN(s, labels).losses, (scores,))
    embeddings = torch.randn(6, 4, generator=torch.Generator().manual_seed(2), dtype=float64, requires_grad=True)
    loss = GradedMarginLoss(temperature=0.5)
    assert gradcheck(lambda e: loss.in_batch(e, BATCH).losses, (embeddings,))


# two queries, rows 0 and 1; passages in rows 2 to 5; each is shown two, and the data grades row 4 for the first query
EMBEDDINGS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=float64)
SCORES = EMBEDDINGS[:2] @ EMBEDDINGS[2:].T
PLAIN = batch_of([0, 1], [[2, 3], [4, 5]])
PLAIN = replace(PLAIN, labels=replace(PLAIN.labels, relevance=tensor([[2.0, 0.0], [1.0, 0.0]])))
BATCH = replace(PLAIN, judged=tensor([[0, 2], [0, 3], [0, 4], [1, 4], [1, 5]]), grades=tensor([2.0, 0, 1, 1, 0]))


def test_other_passages_take_part_with_their_grades_and_unknown_ones_not_at_all():
    loss = GradedMarginLoss(temperature=0.5)
    s = SCORES.tolist()
    output = loss.in_batch(EMBEDDINGS, BATCH)
    expected = [naive(s[0][:3], [2, 0, 1], 0.5, 2.0), naive(s[1][2:], [1, 0], 0.5, 2.0)]
    assert_values(output.losses, *expected, atol=1e-10)
    assert_close(output.metrics["scores/pool"], tensor([3.0, 2.0], dtype=float64))
    plain = [naive(s[0][:2], [2, 0], 0.5, 2.0), expected[1]]
    assert_values(loss.in_batch(EMBEDDINGS, PLAIN).losses, *plain, atol=1e-10)


def test_unknown_passages_as_irrelevant():
    loss = GradedMarginLoss(temperature=0.5, unknown="irrelevant")
    s = SCORES.tolist()
    expected = [naive(s[0], [2, 0, 1, 0], 0.5, 2.0), naive(s[1], [0, 0, 1, 0], 0.5, 2.0)]
    assert_values(loss.in_batch(EMBEDDINGS, BATCH).losses, *expected, atol=1e-10)
    alone = replace(BATCH, own_negatives=tensor([True, False]))
    shut = naive(s[0][:3], [2, 0, 1], 0.5, 2.0)  # what is judged for it stays, what is unknown does not come in
    assert_values(loss.in_batch(EMBEDDINGS, alone).losses, shut, expected[1], atol=1e-10)
    below = replace(BATCH, labels=replace(BATCH.labels, relevance=tensor([[2.0, -1.0], [1.0, 0.0]])), judged=None)
    expected[0] = naive(s[0], [2, -1, -1, -1], 0.5, 2.0)
    assert_values(loss.in_batch(EMBEDDINGS, below).losses, *expected, atol=1e-10)


def test_queries_of_equal_text_share_what_is_known():
    """Both rows of the batch ask the same query: each sees all four passages."""
    same = batch_of([0, 0], [[2, 3], [4, 5]])
    same = replace(same, labels=replace(same.labels, relevance=tensor([[2.0, 0.0], [1.0, 0.0]])))
    output = GradedMarginLoss(temperature=0.5).in_batch(EMBEDDINGS, same)
    expected = naive(SCORES[0].tolist(), [2, 0, 1, 0], 0.5, 2.0)
    assert_values(output.losses, expected, expected, atol=1e-10)


def test_parts_sum_to_the_whole_and_a_query_without_a_cut_weighs_nothing():
    flat = replace(BATCH, labels=replace(BATCH.labels, relevance=tensor([[2.0, 0.0], [0.0, 0.0]])), judged=None)
    loss = GradedMarginLoss(temperature=0.5)
    whole = loss.in_batch(EMBEDDINGS, flat)
    parts = [loss.in_batch(EMBEDDINGS, flat, tensor([number])) for number in (0, 1)]
    assert_close(torch.cat([part.losses for part in parts]), whole.losses)
    assert_close(whole.weights, tensor([1.0, 0.0], dtype=float64))
    assert_close(loss.in_batch_weights(flat)["loss"], tensor([1.0, 0.0]))
    assert whole.losses[1] == 0


def test_a_thousand_nats_are_finite_in_float32():
    logits = tensor([[-1000.0, 0.0, 1000.0]], requires_grad=True)
    losses = graded_margin(logits, tensor([[2.0, 1.0, 0.0]]), torch.ones(1, 3, dtype=torch.bool), [1.0, 2.0], 2.0)
    losses.sum().backward()
    assert_close(losses.detach(), tensor([((1002 + 2002) / 2 + 2002) / 2]))
    assert_close(logits.grad, tensor([[-0.75, -0.25, 1.0]]))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"temperature": 0.0}, "temperature must be > 0, got 0.0"),
        ({"margin": -1.0}, "margin must be >= 0, got -1.0"),
        ({"unknown": "lowest"}, "unknown must be one of masked, irrelevant, got 'lowest'"),
        ({"negatives": "own", "unknown": "irrelevant"}, "unknown=irrelevant applies to passages of other queries"),
    ],
)
def test_refusals(keys, message):
    with pytest.raises(ValueError, match=message):
        GradedMarginLoss(**keys)
