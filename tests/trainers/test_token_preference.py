"""TDPO, Ra-DPO, BCO and reward models on tiny models: first values, the naive formula, the promise of the loop."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.losses.test_risk import naive_cvar
from tests.runs import RANKPO, curve, train, trainer_of
from tests.trainers.test_causal import TINY
from tests.trainers.test_unpaired_preference import moved

RA_DPO = (*TINY, "loss=ra-dpo")


def run(tmp_path, name, *overrides):
    train(*overrides, f"exp_name={name}", f"cache_dir={tmp_path}")
    return tmp_path / name


# of the plain recipes: test_objectives.py
FIRST = {
    "tdpo2": (math.log(2), ("loss=tdpo", "loss.if_tdpo2=true")),
    "erm": (math.log(2), ("loss=ra-dpo", "loss.divergence=erm", "loss.if_ra_dpo2=true")),
    "published": (math.log(2), ("loss=ra-dpo", "loss.divergence=published_code")),
    "adapters": (math.log(2), ("loss=ra-dpo", "model.use_peft=true")),
    "bf16": (math.log(2), ("loss=ra-dpo", "trainer.precision=bf16")),
}


@pytest.mark.parametrize("recipe", FIRST)
def test_first_value(tmp_path, recipe):
    value, options = FIRST[recipe]
    done = run(tmp_path, "run", *TINY, *options, "trainer.max_steps=2")
    first, second = curve(done)
    assert_close(first, value, atol=1e-6, rtol=0)
    assert abs(second - first) > 1e-6


def naive_pair(trainer, model, fixed, group, level):
    """Ra-DPO 1 of one pair in float64, from whole logits of both models."""
    table = trainer.loader.table
    gains = []
    for row in group.candidates:
        prompt, completion = table.tokens(group.query), table.tokens(row)
        ids = torch.tensor([*prompt, *completion])
        place = slice(len(prompt) - 1, len(ids) - 1)
        q = model(input_ids=ids[None]).logits[0, place].log_softmax(-1)  # [T, V]
        p = fixed(input_ids=ids[None]).logits[0, place].log_softmax(-1).detach()
        label = ids[len(prompt) :, None]
        ratio = (q - p).gather(-1, label).sum()
        # with + S on both sides, u_w + S_w - (u_l + S_l): the definition's brackets, differently set
        gains.append(ratio + torch.stack([naive_cvar(*both, level) for both in zip(p, q, strict=True)]).sum())
    return -torch.nn.functional.logsigmoid(trainer.loss.beta * (gains[0] - gains[1]))


def test_value_and_gradient_are_those_of_whole_vocabularies(tmp_path):
    """The risk of every token from [T, V] logits in float64, sorted; transformers' own forward pass and autograd."""
    options = (*RA_DPO, "loss.confidence_level=0.9", "trainer.max_tokens=200", f"cache_dir={tmp_path}")
    trainer = moved(trainer_of(*options))
    model, fixed = (copy.deepcopy(m.base).double() for m in (trainer.policy, trainer.reference.model))
    for other in (model, fixed):
        other.config._attn_implementation = "sdpa"
    trainer.backward(trainer.prepare(0))
    groups = trainer.loader.groups(0)
    expected = sum(naive_pair(trainer, model, fixed, group, 0.9) for group in groups) / len(groups)
    expected.backward()
    trainer.running.end_update()
    assert_close(trainer.running.result(lambda sums: sums)["loss"], expected.item(), rtol=1e-5, atol=0)
    naive = dict(model.named_parameters())
    for name, parameter in trainer.policy.named_parameters():
        gradient = naive[name.removeprefix("backbone.")].grad
        assert (parameter.grad - gradient).norm() < 1e-4 * gradient.norm() + 1e-7, name


def test_metrics_of_divergences(tmp_path):
    """KL is at most the risk; both are 0 at the first update and not after it."""
    done = run(tmp_path, "run", *RA_DPO, "trainer.max_steps=3")
    for side in ("chosen", "rejected"):
        kls, risks = curve(done, f"train/kl/{side}"), curve(done, f"train/risk/{side}")
        assert abs(kls[0]) < 1e-5 and 1e-4 < kls[1] < risks[1]
    assert "train/logps/chosen" in (done / "metrics.jsonl").read_text()


BCO = (
    *RANKPO,
    "loss=bco",
    "loss.temperature=0.1",
    "loss.beta=0.5",
    "trainer.save_every=1",
    "trainer.keep_checkpoints=9",
)


def test_bcos_state_is_the_mean_of_all_rewards_and_lives_in_checkpoints(tmp_path):
    done = run(tmp_path, "run", *BCO)
    chosen, rejected = curve(done, "train/rewards/chosen"), curve(done, "train/rewards/rejected")
    means = [(w + r) / 2 for w, r in zip(chosen, rejected, strict=True)]
    deltas = curve(done, "train/rewards/delta")
    assert deltas[0] == 0 and len(deltas) >= 3
    for step in range(1, len(deltas)):  # all updates but the last have as many pairs
        assert_close(deltas[step], sum(means[:step]) / step, rtol=1e-4, atol=1e-6)
    trainer = trainer_of(*BCO, "exp_name=run", f"cache_dir={tmp_path}")
    assert trainer.state.loss_state == {"delta": 0.0, "num_pairs": 0.0}
    trainer.watch.resume()
    assert trainer.state.step == len(deltas)
    state = trainer.state.loss_state
    assert state["num_pairs"] == trainer.state.queries == 4 * len(deltas)
    assert_close(state["delta"], sum(means) / len(means), rtol=1e-4, atol=1e-6)


def test_reward_model_loads_in_transformers(tmp_path):
    """Rewards of whole conversations, padded in a batch, are ours; the backbone has learnt too."""
    options = (*TINY, "loss=bradley-terry", "optimizer=adamw", "optimizer.lr=0.01", "trainer.epochs=8", "seed=1")
    done = run(tmp_path, "run", *options, "model=tiny_pythia")
    assert sum(curve(done)[-3:]) / 3 < 0.6
    loaded = AutoModelForSequenceClassification.from_pretrained(done / "FINAL")
    tokenizer = AutoTokenizer.from_pretrained(done / "FINAL")
    trainer = trainer_of(*options, "model=tiny_pythia", f"cache_dir={tmp_path}")
    batch = trainer.prepare(0).micro_batches[0].batch
    rows = batch.sequences.input_ids.split(batch.sequences.lengths.tolist())
    padded = tokenizer.pad({"input_ids": [row.tolist() for row in rows]}, return_tensors="pt")
    theirs = loaded(**padded).logits[:, 0].detach()
    trainer.policy.base.base_model.load_state_dict(loaded.base_model.state_dict())
    trainer.policy.reward_head.linear.weight.data.copy_(loaded.score.weight.data)
    assert theirs.std() > 0.01
    assert_close(trainer.policy(batch.sequences).detach(), theirs, atol=1e-4, rtol=1e-4)
