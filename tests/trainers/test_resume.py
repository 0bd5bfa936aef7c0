"""A run that was cut off and continued is the run that was not: the same bytes, the same lines."""

import json
import random

import torch
from torch.testing import assert_close

from tests.runs import CONTRASTIVE, RANKPO, train, trainer_of

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
    first.watch.save()
    random.seed(5)
    torch.manual_seed(5)
    for parameter in second.policy.parameters():
        parameter.data.normal_()
    second.watch.resume()
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
    first.watch.save()
    second.watch.resume()
    for trainer in (first, second):
        trainer.policy.train()
        trainer.train_step(trainer.prepare(1))
    assert_close(dict(second.policy.state_dict()), dict(first.policy.state_dict()), rtol=0, atol=0)


def test_dropout_differs_from_update_to_update_and_from_rank_to_rank(tmp_path, monkeypatch):
    """Seeded by (seed, update, rank): the same update twice is equal; another, or another rank's, is not."""
    trainer = trainer_of(*RECIPES["contrastive"], f"cache_dir={tmp_path}")
    drawn = []
    for step, rank in ((0, 0), (1, 0), (0, 1), (0, 0), (0, 1)):
        trainer.state.step = step
        monkeypatch.setattr("rankpo.runs.processes.rank", lambda rank=rank: rank)
        trainer.seed()
        drawn.append(tuple(torch.rand(3).tolist()))
    assert drawn[:2] == [drawn[3], drawn[1]] and drawn[2] == drawn[4]
    assert len(set(drawn)) == 3
