"""The promise: a loss curve depends on batch_size and seed only, whatever the memory knob and the number of processes."""

import pytest
import torch
from torch.testing import assert_close

from tests.runs import CONTRASTIVE, RANKPO, curve, final_weights, launch, train, trainer_of

REPLAY = (
    *RANKPO,
    "loss.reference_free=false",
    "loss.replay_weight=0.5",
    "loss.replay_temperature=0.1",
    "replay_datasets=[toy_contrastive]",
    "trainer.replay_batch_size=3",
)
RECIPES = {
    "contrastive": CONTRASTIVE,
    "own negatives": (*CONTRASTIVE, "loss.negatives=own"),
    "symmetric": (*CONTRASTIVE, "loss.symmetric=true", "loss.query_query=true"),
    "matryoshka": (*CONTRASTIVE, "loss.matryoshka_dims=[16,8]"),
    "rankpo": RANKPO,
    "hinge": (*RANKPO, "loss.kind=hinge", "loss.reference_free=false"),
    "confidence": (*RANKPO, "loss.confidence=weight", "loss.sft_weight=0.5"),
    "replay": REPLAY,
    "dpo": (*RANKPO, "loss=dpo", "loss.temperature=0.1"),
}


def run(tmp_path, name, *overrides):
    train(*overrides, f"exp_name={name}", f"cache_dir={tmp_path}")
    return tmp_path / name


@pytest.mark.parametrize("recipe", RECIPES)
def test_max_tokens_changes_nothing(tmp_path, recipe):
    """One micro-batch with its graph kept, against many: for in-batch negatives, the gradient cache."""
    whole = run(tmp_path, "whole", *RECIPES[recipe], "trainer.max_tokens=100000")
    parts = run(tmp_path, "parts", *RECIPES[recipe], "trainer.max_tokens=200")
    assert len(curve(whole)) >= 3
    assert_close(curve(parts), curve(whole), rtol=1e-5, atol=1e-6)
    assert_close(final_weights(parts), final_weights(whole), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recipe", ["contrastive", "rankpo", "replay"])
def test_two_processes_give_the_curve_of_one(tmp_path, recipe):
    one = run(tmp_path, "one", *RECIPES[recipe])
    done = launch(*RECIPES[recipe], "exp_name=two", f"cache_dir={tmp_path}", "trainer.max_tokens=300", processes=2)
    assert done.returncode == 0, done.stderr
    assert_close(curve(tmp_path / "two"), curve(one), rtol=1e-5, atol=1e-6)
    assert_close(final_weights(tmp_path / "two"), final_weights(one), rtol=1e-4, atol=1e-5)


def gradients(*overrides):
    """Gradients of the first update by parameter name."""
    trainer = trainer_of(*overrides)
    trainer.policy.train()
    trainer.backward(trainer.prepare(0))
    return {n: p.grad for n, p in trainer.policy.named_parameters() if p.grad is not None}


def test_gradient_cache_equals_the_plain_gradient_of_the_whole_batch(tmp_path):
    """The other side is written out: one forward, the loss, autograd."""
    cached = gradients(*CONTRASTIVE, "trainer.max_tokens=150", f"cache_dir={tmp_path}")
    trainer = trainer_of(*CONTRASTIVE, f"cache_dir={tmp_path}")
    batch = trainer.prepare(0).batch
    output = trainer.loss.in_batch(trainer.policy(batch.sequences), batch)
    output.losses.mean().backward()
    plain = {n: p.grad for n, p in trainer.policy.named_parameters() if p.grad is not None}
    assert cached.keys() == plain.keys()
    whole = torch.stack([gradient.norm() for gradient in plain.values()]).norm()
    for name, gradient in plain.items():  # entries of one tensor may nearly cancel: the whole is the measure
        assert (cached[name] - gradient).norm() < 1e-5 * whole, name


def test_gradient_cache_replays_dropout(tmp_path):
    """With dropout, both passes over a part must drop the same units: then the parts agree with a sum taken twice."""
    options = (*CONTRASTIVE, "trainer.dropout=true", "trainer.max_tokens=150", f"cache_dir={tmp_path}")
    trainer = trainer_of(*options)
    trainer.policy.train()
    seen = []
    trainer.policy.register_forward_hook(lambda module, inputs, output: seen.append(output.detach().clone()))
    trainer.backward(trainer.prepare(0))
    half = len(seen) // 2
    assert half >= 2
    assert_close(seen[:half], seen[half:])


def test_each_distinct_text_is_encoded_once(tmp_path):
    """Pairs of one query share it: the rows of a batch are as many as its distinct texts."""
    trainer = trainer_of(*RANKPO, "trainer.batch_size=24", f"cache_dir={tmp_path}")
    (micro_batch,) = trainer.prepare(0).micro_batches
    groups = trainer.loader.groups(0)
    texts = {(g.query, "q") for g in groups} | {(int(row), "c") for g in groups for row in g.candidates}
    assert len(micro_batch.batch.sequences) == len(texts) < 3 * len(groups)


@pytest.mark.parametrize("source", ["live", "adapters"])
def test_references_agree_with_the_stored_one(tmp_path, source):
    lora = ("model.use_peft=true",) if source == "adapters" else ()
    options = (*RANKPO, *lora, "loss.reference_free=false", f"cache_dir={tmp_path}")
    stored = trainer_of(*options, "trainer.reference=stored")
    other = trainer_of(*options, f"trainer.reference={source}")
    for parameter in other.policy.parameters():
        if parameter.requires_grad:  # the policy moves on; the reference must not
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
    (batch,) = (item.batch for item in stored.prepare(0).micro_batches)
    (same,) = (item.batch for item in other.prepare(0).micro_batches)
    assert_close(other.reference.scores(same), stored.reference.scores(batch), atol=1e-6, rtol=0)
    assert (other.policy.score(other.policy(same.sequences), same) - batch.reference).abs().max() > 1e-3


def test_golden_curves(tmp_path):
    """A refactoring that should keep numbers must keep these; what moves them says so in LOG.md."""
    for name, expected in GOLDEN.items():
        assert_close(curve(run(tmp_path, name, *RECIPES[name])), expected, rtol=1e-4, atol=1e-5)


GOLDEN = {
    "contrastive": [3.00312, 3.180806, 2.878858],
    "own negatives": [1.79459, 1.788649, 1.777171],
    "rankpo": [0.708302, 0.703695, 0.66515, 0.651374, 0.676006, 0.68404],
    "replay": [2.042704, 2.121808, 2.114342, 1.923555, 2.007022, 1.998951],
}
