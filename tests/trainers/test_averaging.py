"""trainer.ema: the average by its formula, in evaluations, checkpoints and FINAL."""

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from rankpo.errors import ConfigError
from rankpo.evaluation.base import Result
from rankpo.evaluation.preferences import PreferenceEvaluator
from rankpo.trainers.strategies.choose import unfit
from tests.runs import CONTRASTIVE, RANKPO, final_weights, train, trainer_of

EMA = "trainer.ema=0.15"  # reached by the rising decay at the first update: 2/11 > .15
EMBEDDINGS = "embeddings.word_embeddings.weight"


def weights_of(trainer):
    return {name: p.detach().clone() for name, p in trainer.policy.named_parameters() if p.requires_grad}


def averages(decays, weights):
    """The averages after each update, from the start weights and those after each update."""
    current = weights[0]
    for decay, own in zip(decays, weights[1:], strict=True):
        current = {name: decay * current[name] + (1 - decay) * own[name] for name in own}
        yield current


@pytest.mark.parametrize(("decay", "decays"), [(0.15, [0.15] * 3), (0.99, [2 / 11, 3 / 12, 4 / 13])])
def test_the_average_by_hand(tmp_path, decay, decays):
    """The decay rises as (1 + t) / (10 + t) up to trainer.ema. The weights in training do not depend on it."""
    plain = trainer_of(*RANKPO, f"cache_dir={tmp_path}")
    averaged = trainer_of(*RANKPO, f"trainer.ema={decay}", f"cache_dir={tmp_path}")
    steps = [weights_of(plain)]
    for step in range(3):
        for trainer in (plain, averaged):
            trainer.policy.train()
            trainer.train_step(trainer.prepare(step))
        steps.append(weights_of(plain))
    *_, expected = averages(decays, steps)
    assert_close(averaged.average.values, expected)
    assert_close(weights_of(averaged), steps[-1], rtol=0, atol=0)
    assert any(not torch.equal(steps[-1][name], expected[name]) for name in expected)


def test_evaluations_see_the_average_and_final_holds_it(tmp_path, monkeypatch):
    seen = []

    def answer(evaluator, model):
        seen.append({name: tensor.clone() for name, tensor in model.base.state_dict().items()})
        return Result({"accuracy": 0.5})

    monkeypatch.setattr(PreferenceEvaluator, "evaluate", answer)
    options = ("eval_datasets=[toy_pairs]", "trainer.eval_every=1", f"cache_dir={tmp_path}", "trainer.save_every=1")
    train(*RANKPO, *options, "trainer.max_steps=3", "trainer.keep_checkpoints=3", EMA, "exp_name=run")
    for step in (1, 2, 3):
        folder = tmp_path / "run" / "checkpoints" / f"step-{step}"
        stored, training = load_file(folder / "weights.safetensors"), load_file(folder / "training.safetensors")
        assert sorted(stored) == sorted(training) and len(stored) > 10
        for name in stored:
            assert torch.equal(stored[name], seen[step][name.partition(".")[2]]), name
        assert any(not torch.equal(stored[name], training[name]) for name in stored)
    final = final_weights(tmp_path / "run")
    assert torch.equal(final[EMBEDDINGS], seen[3][EMBEDDINGS])


def test_the_best_average_becomes_final(tmp_path, monkeypatch):
    scores, seen = iter((0.1, 0.9, 0.2, 0.3)), []

    def answer(evaluator, model):
        seen.append(model.base.state_dict()[EMBEDDINGS].clone())
        return Result({"accuracy": next(scores)})

    monkeypatch.setattr(PreferenceEvaluator, "evaluate", answer)
    options = (
        "eval_datasets=[toy_pairs]",
        "trainer.eval_every=1",
        "trainer.best_metric=accuracy",
        "trainer.final=best",
    )
    train(*RANKPO, *options, "trainer.max_steps=3", EMA, "exp_name=run", f"cache_dir={tmp_path}")
    assert torch.equal(final_weights(tmp_path / "run")[EMBEDDINGS], seen[1])


def test_average_and_weights_come_back_from_a_checkpoint(tmp_path):
    """The next update and its average are the same, to the bit."""
    options = (*CONTRASTIVE, EMA, "optimizer=adamw", "exp_name=run", f"cache_dir={tmp_path}")
    first, second = trainer_of(*options), trainer_of(*options)
    for step in range(2):
        first.policy.train()
        first.train_step(first.prepare(step))
    first.watch.save()
    for parameter in second.policy.parameters():
        parameter.data.normal_()
    second.watch.resume()
    for trainer in (first, second):
        trainer.policy.train()
        trainer.train_step(trainer.prepare(2))
    assert_close(weights_of(second), weights_of(first), rtol=0, atol=0)
    assert_close(second.average.values, first.average.values, rtol=0, atol=0)


@pytest.mark.parametrize("value", ["0", "1", "-0.5", "1.5"])
def test_a_decay_outside_its_range_is_refused(tmp_path, value):
    with pytest.raises(ConfigError, match=r"ema must be a decay in \(0, 1\)"):
        train(*RANKPO, f"trainer.ema={value}", f"cache_dir={tmp_path}")


def test_deepspeed_is_refused():
    loss = trainer_of(*RANKPO).loss
    for name in ("DEEPSPEED-1", "DEEPSPEED-2", "DEEPSPEED-3"):
        assert "fsdp.yaml" in str(unfit(name, frozenset(), loss, evaluated=False, ema=True))
        assert unfit(name, frozenset(), loss, evaluated=False) is None
    assert unfit("FSDP", frozenset(), loss, evaluated=True, ema=True) is None
