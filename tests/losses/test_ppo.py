"""PPO's pieces: the three-token table of the design, GAE against its definition, clipping, terms."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import float64, tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from rankpo.losses.ppo import (
    Estimates,
    PolicyTokens,
    PPOLoss,
    discounted_sums,
    generalised_advantages,
    k3,
    terminal_rewards,
    whitened,
)
from tests.losses.tables import assert_values, labels

VALUES = tensor([0.5, 0.4, 0.2], dtype=float64)
REWARDS = tensor([0.0, 0.0, 1.0], dtype=float64)
COUNT = tensor([3])
REFERENCE = tensor([-1.0, -2.0, -3.0], dtype=float64)
TOKENS = PolicyTokens(REFERENCE + tensor([0.2, -0.1, 0.7], dtype=float64), REFERENCE, REFERENCE)
ADVANTAGES = tensor([-1.0901040, -0.2351751, 1.3252791], dtype=float64)
ESTIMATES = Estimates(ADVANTAGES, tensor([0.9801, 0.99, 1.0], dtype=float64))


def test_advantages_and_returns_of_three_tokens():
    """δ = (-.104, -.202, .8); A_3 = .8, A_2 = -.202 + .9405 · .8, A_1 = -.104 + .9405 · .5504."""
    advantages = generalised_advantages(REWARDS, VALUES, COUNT, 0.99, 0.95)
    assert_values(advantages, 0.4136512, 0.5504, 0.8)
    assert_values(discounted_sums(REWARDS, COUNT, 0.99), 0.9801, 0.99, 1.0)
    assert_values(whitened(advantages, advantages.mean(), advantages.var(correction=0)), *ADVANTAGES.tolist())


def test_lambda_1_gives_returns_less_values():
    torch.manual_seed(1)
    counts = tensor([4, 1, 6])
    rewards, values = torch.randn(11, dtype=float64), torch.randn(11, dtype=float64)
    advantages = generalised_advantages(rewards, values, counts, 0.9, 1.0)
    assert_close(advantages, discounted_sums(rewards, counts, 0.9) - values)


def test_completions_do_not_see_each_other():
    """Each alone gives what they give together; an empty completion takes no part."""
    torch.manual_seed(2)
    counts = tensor([3, 0, 2])
    rewards, values = torch.randn(5, dtype=float64), torch.randn(5, dtype=float64)
    together = generalised_advantages(rewards, values, counts, 0.9, 0.8)
    alone = [
        generalised_advantages(rewards[part], values[part], tensor([len(rewards[part])]), 0.9, 0.8)
        for part in (slice(0, 3), slice(3, 5))
    ]
    assert_close(together, torch.cat(alone))
    assert terminal_rewards(tensor([1.0, 9.0, -1.0]), counts).tolist() == [0, 0, 1, 0, -1]


@pytest.mark.parametrize(("clip", "policy"), [("symmetric", -0.1478891), ("reciprocal", -0.3687690)])
def test_golden_values(clip, policy):
    """ρ = (1.2214028, .9048374, 2.0137527): with c = .5, only the last is clipped, to 1.5 or to 2."""
    output = PPOLoss(clip=clip).of_tokens(TOKENS, ESTIMATES, VALUES)
    assert_values(output.losses.mean(), policy)
    assert_values(output.metrics["scores/ratio"], 1.2214028, 0.9048374, 2.0137527)
    assert output.metrics["scores/clip_fraction"].tolist() == [0, 0, 1]
    assert_values(output.terms["critic"].losses.mean(), 0.2030993)
    assert_values(output.terms["kl"].losses, 0.0187308, 0.0051709, 0.1965853)


def test_the_total_of_the_design():
    output = PPOLoss().of_tokens(TOKENS, ESTIMATES, VALUES)
    total = output.losses.mean() + sum(term.scale * term.losses.mean() for term in output.terms.values())
    assert_values(total, -0.1385086, atol=1e-7)


def test_policy_equal_to_the_old_one():
    """ρ = 1: the loss is minus the mean of the whitened advantages, which is 0; k3 is 0."""
    same = PolicyTokens(REFERENCE, REFERENCE, REFERENCE)
    output = PPOLoss().of_tokens(same, ESTIMATES, VALUES)
    assert_close(output.losses, -ADVANTAGES)
    assert_close(output.terms["kl"].losses, torch.zeros(3, dtype=float64))


def test_a_clipped_token_has_no_gradient_and_constants_none():
    logps = TOKENS.logps.clone().requires_grad_()
    constants = [x.clone().requires_grad_() for x in (REFERENCE, ADVANTAGES, ESTIMATES.returns)]
    tokens = PolicyTokens(logps, constants[0], constants[0])
    output = PPOLoss(kl="none").of_tokens(
        tokens, Estimates(constants[1], constants[2]), VALUES.clone().requires_grad_()
    )
    (output.losses.sum() + output.terms["critic"].losses.sum()).backward()
    assert logps.grad is not None
    assert_close(logps.grad, -ADVANTAGES * tensor([0.2, -0.1, 0], dtype=float64).exp() * tensor([1, 1, 0]))
    assert all(constant.grad is None for constant in constants)


def test_a_negative_advantage_is_clipped_below():
    """A = -1, ρ = .2: the loss stays that of ρ = .5, so the token is not pushed down further."""
    low = PolicyTokens(tensor([0.2]).log(), torch.zeros(1), torch.zeros(1))
    output = PPOLoss().of_tokens(low, Estimates(tensor([-1.0]), torch.zeros(1)), torch.zeros(1))
    assert_values(output.losses.double(), 0.5)


def test_k3_is_small_exact_and_never_negative():
    assert_values(k3(tensor([0.2, -0.1, 0.7], dtype=float64)), 0.0187308, 0.0051709, 0.1965853)
    assert k3(tensor([1e-4]))[0] == pytest.approx(5e-9, rel=1e-3)  # e^{-x} + x - 1 by itself would round to 0


def test_full_kl_takes_the_place_of_k3():
    divergence = tensor([0.1, 0.2, 0.3], dtype=float64)
    loss = PPOLoss(kl="full")
    assert "full" in loss.measures and not PPOLoss().measures
    assert_close(loss.of_tokens(TOKENS, ESTIMATES, VALUES, divergence).terms["kl"].losses, divergence)
    assert "kl" not in PPOLoss(kl="none").of_tokens(TOKENS, ESTIMATES, VALUES).terms
    with pytest.raises(ValueError, match="kl=full needs the divergence"):
        loss.of_tokens(TOKENS, ESTIMATES, VALUES)


def test_rewards_and_weights():
    assert PPOLoss().rewards_of(tensor([[1.0], [0.0], [0.5]])).flatten().tolist() == [1, -1, 1]
    assert PPOLoss(rewards="score").rewards_of(tensor([[0.3]])).item() == pytest.approx(0.3)
    known = replace(labels(2, 1), lengths=tensor([[4], [7]]))
    assert {name: w.tolist() for name, w in PPOLoss().weights(known).items()} == {
        name: [4, 7] for name in ("loss", "critic", "kl")
    }
    assert set(PPOLoss(kl_coef=0.0).weights(known)) == {"loss", "critic"}
    with pytest.raises(ValueError, match="acts on the tokens of completions"):
        PPOLoss().weights(labels(2, 1))


def test_gradcheck():
    """Away from the corners of the clip."""
    loss = PPOLoss()

    def total(logps, values):
        output = loss.of_tokens(TOKENS._replace(logps=logps), ESTIMATES, values)
        return output.losses.sum() + sum(term.losses.sum() for term in output.terms.values())

    assert gradcheck(total, (TOKENS.logps.clone().requires_grad_(), VALUES.clone().requires_grad_()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gamma": 1.1}, "gamma and lam must be at most 1, got 1.1 and 0.95"),
        ({"clip_range": 1.0}, r"clip_range must be in \[0, 1.0\), got 1.0"),
        ({"clip": "both"}, "clip must be one of symmetric, reciprocal, got 'both'"),
        ({"kl": "k1"}, "kl must be one of k3, full, none, got 'k1'"),
        ({"epochs": 0}, "epochs must be > 0, got 0"),
        ({"old_policy": "synced"}, "old_policy must be one of reference, batch, got 'synced'"),
    ],
)
def test_errors_name_field_and_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        PPOLoss(**arguments)
