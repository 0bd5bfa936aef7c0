"""GRPO: advantages of a group, token losses by hand, both normalisations, lists of candidates."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import float64, ones, tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from rankpo.losses.grpo import GRPOLoss
from rankpo.losses.ppo import PolicyTokens
from rankpo.types import Labels
from tests.losses.tables import assert_values, labels

PAIR = tensor([[1.0, 0.0]], dtype=float64)
FOUR = tensor([[1.0, 0.0, 0.0, 0.5]], dtype=float64)


def unmasked(rewards):
    return ones(rewards.shape, dtype=torch.bool)


def tokens_of(*log_ratios: float) -> PolicyTokens:
    fixed = -torch.arange(1, len(log_ratios) + 1, dtype=float64)
    return PolicyTokens(fixed + tensor(log_ratios, dtype=float64), fixed, fixed)


def test_advantages_of_a_group():
    """(1, 0): ±.5/(.5 + .01) and ±.5/(.7071 + .0001); four rewards: mean .375, population deviation .4145781."""
    assert_values(GRPOLoss().advantages(PAIR, unmasked(PAIR)), 0.9803922, -0.9803922)
    sample = GRPOLoss(std="sample", delta=1e-4)
    assert_values(sample.advantages(PAIR, unmasked(PAIR)), 0.7070068, -0.7070068)
    assert_values(GRPOLoss().advantages(FOUR, unmasked(FOUR)), 1.4720496, -0.8832297, -0.8832297, 0.2944099)


def test_groups_without_spread_get_nothing():
    """One candidate; three times .9, whose mean in float32 is not .9; nothing unmasked."""
    rewards = tensor([[0.7, 9.0, 9.0], [0.9, 0.9, 0.9], [1.0, 0.0, 0.0]])
    mask = tensor([[True, False, False], [True, True, True], [False, False, False]])
    for std in ("population", "sample"):
        assert GRPOLoss(std=std, delta=1e-9).advantages(rewards, mask).eq(0).all()


def test_masked_rewards_do_not_count():
    padded = torch.cat([PAIR, tensor([[100.0]], dtype=float64)], 1)
    got = GRPOLoss().advantages(padded, tensor([[True, True, False]]))
    assert_values(got, 0.9803922, -0.9803922, 0.0)


def test_token_losses_by_hand():
    """ρ = e^.3 is clipped to 1.2 under A > 0; ρ = e^-.3 to .8 under A < 0; plus .04 · k3."""
    loss = GRPOLoss(beta=0.04)
    advantages = loss.advantages(PAIR, unmasked(PAIR))[0]
    output = loss.of_tokens(tokens_of(0.3, -0.3), advantages, tensor([1, 1]))
    total = output.losses + output.terms["kl"].scale * output.terms["kl"].losses
    assert_values(total, -1.1748379, 0.7863081)
    assert output.metrics["scores/clip_fraction"].tolist() == [1, 1]


def test_the_upper_clip_may_differ():
    output = GRPOLoss(epsilon_high=0.5).of_tokens(tokens_of(0.3), tensor([2.0], dtype=float64), tensor([1]))
    assert_close(output.losses, -2 * tensor([0.3], dtype=float64).exp())


def test_normalisations():
    """Three tokens of one completion and one of another: a quarter each, or a sixth and a half."""
    tokens = tokens_of(0.1, 0.0, -0.1, 0.05)
    advantages, counts = tensor([1.0, -1.0], dtype=float64), tensor([3, 1])
    by_token = GRPOLoss().of_tokens(tokens, advantages, counts)
    assert by_token.weights is None
    by_sequence = GRPOLoss(normalise="sequence", beta=0.1).of_tokens(tokens, advantages, counts)
    assert_close(by_sequence.weights, tensor([1 / 3, 1 / 3, 1 / 3, 1.0], dtype=float64))
    assert_close(by_sequence.terms["kl"].weights, by_sequence.weights)
    known = replace(labels(1), lengths=tensor([[3, 1]]))
    assert GRPOLoss().weights(known)["loss"].tolist() == [4]
    assert GRPOLoss(normalise="sequence").weights(known)["loss"].tolist() == [2]


SCORES = tensor([[0.7, 0.5, 0.1], [0.2, 0.4, 9.0]], dtype=float64)
FIXED = tensor([[0.6, 0.5, 0.3], [0.2, 0.2, -9.0]], dtype=float64)
LISTS = Labels(
    relevance=tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0]], dtype=float64),
    mask=tensor([[True, True, True], [True, True, False]]),
    confidence=ones(2, dtype=float64),
)


def test_candidates_of_other_models_against_a_loop():
    """A list is the group, a candidate a token, its log-probability the list's log-softmax at τ."""
    loss = GRPOLoss(temperature=0.1, beta=0.5, logps="candidates")
    output = loss(SCORES, LISTS, FIXED)
    for b, size in enumerate((3, 2)):
        policy, old = ((x[b, :size] / 0.1).log_softmax(-1) for x in (SCORES, FIXED))
        rewards = LISTS.relevance[b, :size]
        advantages = (rewards - rewards.mean()) / (rewards.std(correction=0) + 0.01)
        ratio = (policy - old).exp()
        values = [max(-a * r, -a * min(max(r, 0.8), 1.2)) for a, r in zip(advantages, ratio, strict=True)]
        assert output.losses[b].item() == pytest.approx(float(sum(values)) / size)
        distance = ((old - policy).exp() + policy - old - 1).mean()
        assert_close(output.terms["kl"].losses[b], distance)
    assert loss.weights(LISTS)["loss"].tolist() == [3, 2]


def test_step_0_of_a_list_is_0():
    assert_close(
        GRPOLoss(logps="candidates")(SCORES, LISTS, SCORES).losses, torch.zeros(2, dtype=float64), atol=1e-12, rtol=0
    )


def test_gradcheck():
    loss = GRPOLoss(beta=0.3, temperature=0.5, logps="candidates")

    def total(scores):
        output = loss(scores, LISTS, FIXED)
        return output.losses + output.terms["kl"].losses

    assert gradcheck(total, SCORES.clone().requires_grad_())


def test_needs_reference():
    assert "reference" in GRPOLoss().needs
    assert "reference" not in GRPOLoss(old_policy="batch").needs
    assert "reference" in GRPOLoss(old_policy="batch", beta=0.1).needs


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GRPOLoss(epsilon=1.0), r"epsilon must be in \[0, 1.0\), got 1.0"),
        (lambda: GRPOLoss(std="mean"), "std must be one of population, sample, got 'mean'"),
        (lambda: GRPOLoss(normalise="batch"), "normalise must be one of token, sequence, got 'batch'"),
        (lambda: GRPOLoss(old_policy="batch")(SCORES, LISTS, FIXED), "old_policy=batch acts on tokens"),
    ],
)
def test_errors_name_field_and_value(build, message):
    with pytest.raises(ValueError, match=message):
        build()
