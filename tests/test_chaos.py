"""Two stages, killed again and again wherever they are and continued with resume=auto: the same weights, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import chaos
from tests.runs import CONTRASTIVE, RANKPO
from tests.trainers.test_resume import REPLAY, lines

COMMON = (
    "optimizer=adamw",
    "optimizer.lr=1e-3",
    "scheduler=cosine",
    "trainer.dropout=true",
    "trainer.save_every=1",
    "trainer.log_every=3",  # half a log line must survive
    "trainer.eval_every=2",
    "trainer.max_tokens=400",
    "eval_datasets=[toy_pairs]",
    "trainer.best_metric=accuracy",
)


def stages(cache: Path, steps: int) -> dict[str, list[str]]:
    """By name. RankPO goes on from the contrastive stage's FINAL, which is its reference too."""
    common = (*COMMON, f"trainer.max_steps={steps}")
    return {
        "one": [*CONTRASTIVE, *common],
        "two": [*RANKPO, *REPLAY, *common, f"model.load_from={cache / 'one' / 'FINAL'}"],
    }


@pytest.mark.parametrize(
    ("kills", "steps"), [(3, 5), pytest.param(20, 24, marks=pytest.mark.slow)], ids=["3 kills", "20 kills"]
)
def test_killed_again_and_again_two_stages_end_as_if_undisturbed(tmp_path, kills, steps):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    seen = {name: chaos.run(overrides, whole, name) for name, overrides in stages(whole, steps).items()}
    planned = {"one": (kills + 1) // 2, "two": kills // 2}
    for seed, (name, overrides) in enumerate(stages(killed, steps).items()):
        for kill in chaos.plan(seed, planned[name], seen[name]):
            chaos.run(overrides, killed, name, kill)
            assert not (killed / name / "FINAL").exists()
        chaos.run(overrides, killed, name)
        weights = f"{name}/FINAL/model.safetensors"
        assert (killed / weights).read_bytes() == (whole / weights).read_bytes(), name
        assert lines(killed / name) == lines(whole / name)
        assert [path.name for path in (killed / name).rglob("*") if ".tmp" in path.name or ".old" in path.name] == []
