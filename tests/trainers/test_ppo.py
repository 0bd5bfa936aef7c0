"""PPO and GRPO: the first update by hand, passes over one update, whitening over all of it, the critic's own clip."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from rankpo.config.compose import compose
from rankpo.errors import ConfigError
from rankpo.trainers.ppo import completion_tokens
from rankpo.types import Batch, Labels, Sequences
from tests.runs import RANKPO, curve, train, trainer_of
from tests.trainers.test_causal import TINY
from tests.trainers.test_unpaired_preference import moved

PPO = (*TINY, "loss=ppo")
GRPO = (*TINY, "loss=grpo")


def run(tmp_path, name, *overrides):
    train(*overrides, f"exp_name={name}", f"cache_dir={tmp_path}")
    return tmp_path / name


def lengths_and_rewards(trainer, step=0):
    table = trainer.loader.table
    groups = trainer.loader.groups(step)
    return [
        (len(table.tokens(row)), float(relevance))
        for group in groups
        for row, relevance in zip(group.candidates, group.relevance, strict=True)
    ]


def test_first_update_of_ppo_by_hand(tmp_path):
    """V = 0, so that A_t = (γλ)^(T-t) r and R_t = γ^(T-t) r; ρ = 1: the policy's loss is 0, the critic's ½ mean R²."""
    trainer = trainer_of(*PPO, "trainer.max_tokens=150", f"cache_dir={tmp_path}")
    known = lengths_and_rewards(trainer)
    update = trainer.begin(trainer.prepare(0))
    rewards = [(size - 1 - t, 1.0 if relevance > 0 else -1.0) for size, relevance in known for t in range(size)]
    advantages = torch.tensor([(0.99 * 0.95) ** k * r for k, r in rewards])
    whitened = (advantages - advantages.mean()) / advantages.std(correction=0)
    got = torch.cat([item.batch.estimates.advantages for item in update.micro_batches])
    assert_close(got.sort().values, whitened.sort().values, atol=1e-5, rtol=1e-5)
    trainer.backward(update)
    trainer.running.end_update()
    logged = trainer.running.result(lambda sums: sums)
    critic = sum((0.99**k * r) ** 2 for k, r in rewards) / len(rewards) / 2
    assert_close(logged["loss/critic"], critic, rtol=1e-5, atol=0)
    assert_close(logged["loss"], 0.01 * critic, rtol=1e-4, atol=1e-7)
    assert_close(logged["scores/ratio"], 1.0, rtol=1e-6, atol=0)
    assert_close(logged["rewards/mean"], sum(1.0 if r > 0 else -1.0 for _, r in known) / len(known))
    assert update.denominators == {"loss": len(rewards), "critic": len(rewards), "kl": len(rewards)}
    assert 0 < logged["scores/entropy"] <= math.log(512)


def naive_logps(trainer, query, completion):
    """[T] log-probabilities of a completion's tokens by transformers' own logits."""
    prompt, completed = (trainer.loader.table.tokens(row) for row in (query, completion))
    ids = torch.tensor([*prompt, *completed])
    model = trainer.policy.base
    asked, model.config._attn_implementation = model.config._attn_implementation, "sdpa"
    with torch.no_grad():
        logps = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
    model.config._attn_implementation = asked
    return logps.gather(-1, ids[1:, None])[len(prompt) - 1 :, 0]


@pytest.mark.parametrize("recipe", [PPO, GRPO], ids=["ppo", "grpo"])
def test_passes_over_one_update(tmp_path, recipe):
    """Old log-probabilities are those of the update's beginning in every pass: ρ is 1 in the first, not in the next."""
    options = (*recipe, "loss.epochs=2", "loss.old_policy=batch", "trainer.max_tokens=100000", f"cache_dir={tmp_path}")
    trainer = moved(trainer_of(*options))
    groups = trainer.loader.groups(0)
    pairs = [(group.query, int(row)) for group in groups for row in group.candidates]
    start = torch.cat([naive_logps(trainer, *pair) for pair in pairs])
    ratios, between = [], []
    compute = trainer.compute_loss

    def watched(batch):
        between.append(torch.cat([naive_logps(trainer, *pair) for pair in pairs]))
        output = compute(batch)
        ratios.append(output.metrics["scores/ratio"])
        return output

    trainer.compute_loss = watched
    trainer.train_step(trainer.prepare(0))
    assert len(ratios) == 2 and trainer.state.step == 1
    assert_close(ratios[0], torch.ones_like(start), atol=1e-5, rtol=0)
    assert_close(ratios[1], (between[1] - start).exp(), atol=1e-4, rtol=1e-4)
    assert (ratios[1] - 1).abs().max() > 1e-3


def test_old_policy_reference_compares_with_the_start_model(tmp_path):
    trainer = moved(trainer_of(*PPO, f"cache_dir={tmp_path}"))
    update = trainer.begin(trainer.prepare(0))
    (item,) = update.micro_batches
    assert_close(item.batch.old_logps, item.batch.reference_logps)
    policy = torch.cat([naive_logps(trainer, g.query, int(g.candidates[0])) for g in trainer.loader.groups(0)])
    ratio = trainer.compute_loss(item.batch).metrics["scores/ratio"]
    assert_close(ratio, (policy - item.batch.reference_logps).exp(), atol=1e-4, rtol=1e-4)
    assert (ratio - 1).abs().max() > 1e-2


def test_grpo_by_sequence_starts_at_0(tmp_path):
    """The advantages of a group sum to 0; a mean over tokens would weigh the longer completion more."""
    done = run(tmp_path, "run", *GRPO, "loss.normalise=sequence", "trainer.max_steps=1")
    assert_close(curve(done), [0.0], atol=1e-6, rtol=0)
    assert_close(curve(done, "train/rewards/std"), [0.5])


def test_the_critics_gradient_is_clipped_by_itself(tmp_path):
    """A critic a million times as loud leaves the policy's step as it was, and is held to its own norm."""
    gradients = []
    for coefficient in ("0.01", "10000"):
        trainer = moved(trainer_of(*PPO, f"loss.critic_coef={coefficient}", f"cache_dir={tmp_path}"))
        trainer.backward(trainer.begin(trainer.prepare(0)))
        trainer.clip()
        head = trainer.policy.value_head
        gradients.append({n: p.grad.clone() for n, p in trainer.policy.named_parameters() if "value_head" not in n})
    assert_close(gradients[1], gradients[0])
    assert_close(torch.stack([p.grad.norm() for p in head.parameters()]).norm().item(), 0.1, rtol=1e-4, atol=0)


def test_the_value_head_is_saved_and_goes_on(tmp_path):
    done = run(tmp_path, "run", *PPO, "loss.value_max_grad_norm=null")
    saved = load_file(done / "FINAL" / "value_head.safetensors")
    assert saved["linear.weight"].abs().max() > 0
    trainer = trainer_of(*PPO, f"model.load_from={done}/FINAL", f"cache_dir={tmp_path}")
    assert_close(trainer.policy.value_head.state_dict(), saved)
    assert not any("value_head" in name for name in load_file(done / "FINAL" / "model.safetensors"))


def test_a_completion_that_stands_twice_counts_twice():
    """Sequences of 2 and 3 scored tokens; rows 1, 0, 1, and a masked one."""
    labels = torch.tensor([-100, 5, 6, -100, -100, 7, 8, 9])
    sequences = Sequences(torch.arange(8), torch.tensor([3, 5]), labels)
    candidates = torch.tensor([[1, 0], [1, 0]])
    mask = torch.tensor([[True, True], [True, False]])
    known = Labels(torch.ones(2, 2), mask, torch.ones(2), lengths=torch.tensor([[3, 2], [3, 0]]))
    places, counts = completion_tokens(Batch(sequences, None, candidates, known, ("a", "b")))
    assert places.tolist() == [2, 3, 4, 0, 1, 2, 3, 4]
    assert counts.tolist() == [3, 2, 3]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("loss=ppo",), "PPOLoss needs token log-probabilities"),
        (
            ("loss=grpo", "loss.old_policy=batch"),
            "loss.old_policy=batch needs token log-probabilities; model of random weights is of kind embedding",
        ),
    ],
)
def test_what_embedding_models_cannot_do(overrides, message):
    with pytest.raises(ConfigError) as error:
        compose((*RANKPO, *overrides))
    assert len(error.value.problems) == 1 and message in error.value.problems[0]
