"""A run that was cut off and continued is the run that was not: the same bytes, the same lines."""

import json
import random

import pytest
import torch
from torch.testing import assert_close

from tests.runs import CONTRASTIVE, RANKPO, train, trainer_of
from tests.starts import Started, waiting_at

COMMON = (
    "optimizer=adamw",
    "optimizer.lr=1e-3",
    "scheduler=cosine",
    "trainer.max_steps=60",
    "trainer.dropout=true",
    "trainer.save_every=5",
    "trainer.log_every=7",  # no multiple of 5: half a log line must survive
    "trainer.eval_every=11",
    "trainer.max_tokens=400",
    "eval_datasets=[toy_pairs]",
    "trainer.best_metric=accuracy",
)
REPLAY = (
    "loss.reference_free=false",
    "loss.replay_weight=0.5",
    "loss.replay_temperature=0.1",
    "replay_datasets=[toy_contrastive]",
    "trainer.replay_batch_size=3",
)
RECIPES = {"contrastive": (*CONTRASTIVE, *COMMON), "rankpo with replay": (*RANKPO, *REPLAY, *COMMON)}


def lines(run_dir):
    """The rows of metrics.jsonl without what the clock decides."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if key not in ("time", "train/tokens_per_second")} for row in rows]


def last_step(run_dir):
    path = run_dir / "metrics.jsonl"
    return json.loads(path.read_text().splitlines()[-1])["step"] if path.exists() and path.read_text() else -1


def run_and_kill(run_dir, overrides, after):
    """Starts launch.py as a user does, and kills it without warning once `after` updates are logged."""
    place = (f"exp_name={run_dir.name}", f"cache_dir={run_dir.parent}")
    started = Started(*overrides, *place, before=waiting_at(59, run_dir.parent / "never"))
    started.until(lambda: last_step(run_dir) >= after)
    started.kill()
    assert not (run_dir / "FINAL").exists()


@pytest.mark.parametrize(("recipe", "after"), [("contrastive", 7), ("rankpo with replay", 33)])
def test_killed_and_continued_equals_uninterrupted(tmp_path, recipe, after):
    overrides = RECIPES[recipe]
    train(*overrides, "exp_name=whole", f"cache_dir={tmp_path}")
    killed = tmp_path / "killed"
    run_and_kill(killed, overrides, after)
    train(*overrides, "exp_name=killed", f"cache_dir={tmp_path}", "resume=auto")
    whole = tmp_path / "whole"
    weights = "FINAL/model.safetensors"
    assert (killed / weights).read_bytes() == (whole / weights).read_bytes()
    assert lines(killed) == lines(whole)
    train_steps = [row["step"] for row in lines(killed) if "train/loss" in row]
    assert train_steps == [*range(7, 60, 7), 60]


def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path):
    """Its evaluation at step 0 is in metrics.jsonl already, and must not stand there twice."""
    overrides = [*RECIPES["contrastive"], "trainer.save_every=null", "trainer.best_metric=null", "trainer.max_steps=3"]
    train(*overrides, "exp_name=whole", f"cache_dir={tmp_path}")
    begun = tmp_path / "begun"
    train(*overrides, "exp_name=begun", f"cache_dir={tmp_path}")
    for path in sorted((begun / "FINAL").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (begun / "FINAL").rmdir()
    with (begun / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "ti')  # a power cut
    train(*overrides, "exp_name=begun", f"cache_dir={tmp_path}", "resume=auto")
    assert lines(begun) == lines(tmp_path / "whole")


def test_everything_comes_back_by_name(tmp_path):
    """Saved by one trainer, loaded by another whose weights, moments and generators are all different."""
    options = (*RECIPES["rankpo with replay"], "exp_name=run", f"cache_dir={tmp_path}")
    first, second = trainer_of(*options), trainer_of(*options)
    for step in range(3):
        first.policy.train()
        first.train_step(first.prepare(step))
    first.save()
    random.seed(5)
    torch.manual_seed(5)
    for parameter in second.policy.parameters():
        parameter.data.normal_()
    second.resume()
    assert (second.state, first.state.step) == (first.state, 3)
    named = dict(second.policy.named_parameters())
    moments = 0
    for name, parameter in first.policy.named_parameters():
        if not parameter.requires_grad:
            continue
        assert torch.equal(named[name], parameter), name
        mine, theirs = first.optimizer.state[parameter], second.optimizer.state[named[name]]
        assert mine.keys() == theirs.keys() and float(theirs["step"]) == 3
        assert torch.equal(mine["exp_avg_sq"], theirs["exp_avg_sq"]), name
        moments += 1
    assert moments > 10
    assert second.running.result(lambda x: x) == first.running.result(lambda x: x)


def test_momentum_of_sgd_comes_back(tmp_path):
    options = (*RANKPO, "optimizer.momentum=0.9", "exp_name=run", f"cache_dir={tmp_path}")
    first, second = trainer_of(*options), trainer_of(*options)
    first.policy.train()
    first.train_step(first.prepare(0))
    first.save()
    second.resume()
    for trainer in (first, second):
        trainer.policy.train()
        trainer.train_step(trainer.prepare(1))
    assert_close(dict(second.policy.state_dict()), dict(first.policy.state_dict()), rtol=0, atol=0)


def test_a_flipped_byte_goes_back_one_checkpoint_and_still_ends_equal(tmp_path, capsys):
    overrides = [*RECIPES["contrastive"], "trainer.max_steps=12", "trainer.eval_every=null", "trainer.best_metric=null"]
    train(*overrides, "exp_name=whole", f"cache_dir={tmp_path}")
    train(*overrides, "exp_name=hurt", f"cache_dir={tmp_path}")
    hurt = tmp_path / "hurt"
    (hurt / "FINAL").rename(tmp_path / "aside")
    victim = hurt / "checkpoints" / "step-10" / "weights.safetensors"
    content = bytearray(victim.read_bytes())
    content[-5] ^= 1
    victim.write_bytes(content)
    train(*overrides, "exp_name=hurt", f"cache_dir={tmp_path}", "resume=auto")
    said = capsys.readouterr().err
    assert "step-10 is damaged (weights.safetensors has another content" in said
    assert f"continuing from {hurt / 'checkpoints' / 'step-5'}" in said
    weights = "FINAL/model.safetensors"
    assert (hurt / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()


def test_dropout_differs_from_update_to_update(tmp_path):
    """Seeded by (seed, update, rank): the same update twice is equal, another is not."""
    trainer = trainer_of(*RECIPES["contrastive"], f"cache_dir={tmp_path}")
    drawn = []
    for step in (0, 1, 0):
        trainer.state.step = step
        trainer._seed()
        drawn.append(torch.rand(3))
    assert torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[1])
