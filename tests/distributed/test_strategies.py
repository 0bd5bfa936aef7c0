"""The same run under every strategy, two processes each: loss curve, evaluation, FINAL; and across an interruption.

Runs share a launch: starting processes costs more than the runs do.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.testing import assert_close

from rankpo.storage.json_files import read_json, write_json
from tests.distributed.strategies import (
    AVERAGED,
    RECIPES,
    REFUSED,
    STEPS,
    STRATEGIES,
    accelerate,
    assert_two_are_one,
    installed,
    launch_all,
    needs,
    place,
    trained,
)
from tests.runs import curve, final_weights, train

IN_CI = (
    *((recipe, "fsdp") for recipe in ("contrastive", "one query", "rankpo, LoRA", "reranker", "tdpo", "grpo")),
    *((recipe, "deepspeed_zero3") for recipe in ("gradient cache", "one query", "dpo, LoRA", "bradley-terry", "ppo")),
    *((recipe, "deepspeed_zero2") for recipe in ("rankpo", "kto", "listwise reranker")),
    ("dpo", "deepspeed_zero1"),
    ("tdpo, LoRA", "ddp"),
)
# eps: where a gradient is nearly 0, Adam makes an update of what the strategies round differently
ADAMW = ("optimizer=adamw", "optimizer.lr=0.01", "optimizer.eps=0.001", "trainer.save_every=2")
INTERRUPTED = (*RECIPES["rankpo"], *ADAMW)


def test_two_processes_are_one_and_one_continues_for_them(tmp_path):
    cells = [(recipe, strategy) for recipe, strategy in IN_CI if installed(strategy)]
    assert_two_are_one(cells, tmp_path, further={"changed": (*INTERRUPTED, "trainer.max_steps=2")})
    two = tmp_path / "two"
    train(*INTERRUPTED, *place(two, "whole"))
    cut_off(two / "changed")
    train(*INTERRUPTED, "resume=auto", *place(two, "changed"))
    assert_continued(two / "changed", two / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_are_one_for_every_recipe(tmp_path, strategy):
    needs(strategy)
    assert_two_are_one(trained(strategy), tmp_path, further={})


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "strategy"), REFUSED)
def test_what_cannot_work_is_refused_at_start(tmp_path, recipe, strategy):
    needs(strategy)
    done = accelerate(strategy, *RECIPES[recipe], *place(tmp_path, "refused"))
    assert done.returncode != 0
    assert REFUSED[recipe, strategy] in done.stdout
    assert "Traceback" not in done.stdout.split("torch/distributed/elastic")[0]
    assert not (tmp_path / "refused").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then"), [("deepspeed_zero1", "fsdp"), ("alone", "deepspeed_zero2"), ("fsdp", "deepspeed_zero3")]
)
def test_a_run_continues_under_another_strategy(tmp_path, first, then):
    for strategy in {first, then} - {"alone"}:
        needs(strategy)
    train(*INTERRUPTED, *place(tmp_path, "whole"))
    start, end = (*INTERRUPTED, "trainer.max_steps=2"), (*INTERRUPTED, "resume=auto")
    for strategy, options in ((first, start), (then, end)):
        if strategy == "alone":
            train(*options, *place(tmp_path, "changed"))
        else:
            launch_all(strategy, {"changed": options}, tmp_path)
        if options is start:
            cut_off(tmp_path / "changed")
    assert_continued(tmp_path / "changed", tmp_path / "whole")


@pytest.mark.slow
def test_an_average_of_sharded_weights_is_that_of_one_process(tmp_path):
    """In evaluations, FINAL and a checkpoint, which one process continues: weights and average both come along."""
    averaged = (*INTERRUPTED, "trainer.ema=0.5")
    cells = [(recipe, strategy) for strategy in ("fsdp", "ddp") for recipe in AVERAGED]
    assert_two_are_one(cells, tmp_path, further={"changed": (*averaged, "trainer.max_steps=2")})
    two = tmp_path / "two"
    train(*averaged, *place(two, "whole"))
    cut_off(two / "changed")
    train(*averaged, "resume=auto", *place(two, "changed"))
    assert_continued(two / "changed", two / "whole")
    train(*INTERRUPTED, *place(two, "plain"))
    plain, whole = final_weights(two / "plain"), final_weights(two / "whole")
    assert any((plain[name] - whole[name]).abs().max() > 1e-4 for name in whole)  # The average is another model.


def assert_continued(changed: Path, whole: Path) -> None:
    """AdamW: its moments and its step count must have come along, or steps 3 and 4 differ."""
    assert len(curve(changed)) == STEPS
    assert_close(curve(changed), curve(whole), rtol=1e-5, atol=1e-7)
    assert_close(final_weights(changed), final_weights(whole), rtol=1e-3, atol=1e-5)


def cut_off(run_dir: Path) -> None:
    """Makes a finished run of two updates look like one of STEPS that was killed: no FINAL, and the other's config."""
    (run_dir / "FINAL").rename(run_dir / "gone")
    config = read_json(run_dir / "config.json")
    config["trainer"]["max_steps"] = STEPS
    write_json(run_dir / "config.json", config)
