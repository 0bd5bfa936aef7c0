"""The same run under every strategy, two processes each: loss curve, evaluation, FINAL; and across an interruption."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch.testing import assert_close

from tests.distributed.strategies import RECIPES, STRATEGIES, accelerate, needs, place
from tests.runs import curve, final_weights, train

IN_CI = {("contrastive", "fsdp"), ("rankpo", "deepspeed_zero2"), ("dpo", "deepspeed_zero3")}
CELLS = [
    pytest.param(recipe, strategy, marks=[] if (recipe, strategy) in IN_CI else pytest.mark.slow)
    for recipe in RECIPES
    for strategy in STRATEGIES
]


def evaluations(run_dir: Path) -> list[dict[str, float]]:
    """Metrics of every evaluation. Without shares of rewards that are 0 but for rounding before the first update."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: row[name] for name in row if name.startswith("eval/") and "rewards/" not in name}
        for row in rows
        if any(name.startswith("eval/") for name in row)
    ]


@pytest.mark.parametrize(("recipe", "strategy"), CELLS)
def test_two_processes_of_any_strategy_are_one(tmp_path, recipe, strategy):
    needs(strategy)
    train(*RECIPES[recipe], *place(tmp_path, "one"))
    done = accelerate(strategy, *RECIPES[recipe], *place(tmp_path, "two"))
    assert done.returncode == 0, done.stdout
    one, two = tmp_path / "one", tmp_path / "two"
    assert len(curve(one)) == 4
    assert_close(curve(two), curve(one), rtol=1e-5, atol=1e-7)
    assert len(evaluations(two)) == len(evaluations(one)) == (3 if "eval_datasets" in str(RECIPES[recipe]) else 0)
    for ours, expected in zip(evaluations(two), evaluations(one), strict=True):
        assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert_close(final_weights(two), final_weights(one), rtol=1e-4, atol=1e-5)


# eps: where a gradient is nearly 0, Adam makes an update of what the strategies round differently
ADAMW = ("optimizer=adamw", "optimizer.lr=0.01", "optimizer.eps=0.001", "trainer.save_every=2")


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("fsdp", "alone"),
        pytest.param("deepspeed_zero3", "alone", marks=pytest.mark.slow),
        pytest.param("deepspeed_zero1", "fsdp", marks=pytest.mark.slow),
        pytest.param("alone", "deepspeed_zero2", marks=pytest.mark.slow),
        pytest.param("fsdp", "deepspeed_zero3", marks=pytest.mark.slow),
    ],
)
def test_a_run_continues_under_another_strategy(tmp_path, first, then):
    """AdamW: its moments and its step count must come along, or steps 3 and 4 differ."""
    for strategy in {first, then} - {"alone"}:
        needs(strategy)
    overrides = (*RECIPES["rankpo"], *ADAMW)
    train(*overrides, *place(tmp_path, "whole"))
    start, end = (*overrides, "trainer.max_steps=2"), (*overrides, "resume=auto")
    for strategy, options in ((first, start), (then, end)):
        if strategy == "alone":
            train(*options, *place(tmp_path, "changed"))
        else:
            done = accelerate(strategy, *options, *place(tmp_path, "changed"))
            assert done.returncode == 0, done.stdout
        if options is start:
            cut_off(tmp_path / "changed", tmp_path / "whole")
    assert_close(curve(tmp_path / "changed"), curve(tmp_path / "whole"), rtol=1e-5, atol=1e-7)
    assert_close(final_weights(tmp_path / "changed"), final_weights(tmp_path / "whole"), rtol=1e-3, atol=1e-5)


def cut_off(run_dir: Path, whole: Path) -> None:
    """Makes a finished run of two updates look like one of more that was killed: no FINAL, and the other's config."""
    (run_dir / "FINAL").rename(run_dir / "gone")
    config = json.loads((whole / "config.json").read_text())
    config.update(exp_name=run_dir.name, run_dir=str(run_dir))
    (run_dir / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("strategy", ["fsdp", pytest.param("deepspeed_zero3", marks=pytest.mark.slow)])
def test_a_rank_without_work_keeps_in_step(tmp_path, strategy):
    """One query to encode, which is one rank's: the other must gather with it, or both wait for ever."""
    needs(strategy)
    record = {"query": "red", "passage1": "a red apple", "passage2": "a blue sea", "preferred": "A"}
    (tmp_path / "one.jsonl").write_text(json.dumps(record) + "\n")
    options = ("eval_datasets=[rankpo]", f"eval_datasets.rankpo.path={tmp_path / 'one.jsonl'}")
    options = (*RECIPES["gradient cache"], "trainer.max_steps=2", *options)
    train(*options, *place(tmp_path, "one"))
    done = accelerate(strategy, *options, *place(tmp_path, "two"), timeout=100)
    assert done.returncode == 0, done.stdout
    assert len(evaluations(tmp_path / "two")) == 2
    for ours, expected in zip(evaluations(tmp_path / "two"), evaluations(tmp_path / "one"), strict=True):
        assert_close(ours, expected, rtol=1e-5, atol=1e-5)
