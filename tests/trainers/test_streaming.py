"""Streamed datasets: a window of them at a time, with the same curve however the run is cut, interrupted or launched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch.testing import assert_close

from rankpo.config.compose import compose
from rankpo.errors import ConfigError
from tests.runs import TINY, curve, final_weights, launch, train, trainer_of

datasets = pytest.importorskip("datasets")


def copy(folder: Path, count: int = 22) -> Path:
    """A dataset's folder with one file; examples 5 to 9 have no positive and so no use for a contrastive loss."""
    folder.mkdir(parents=True)
    rows = [{"query": f"query {n}", "pos": [f"answer {n}"], "neg": [f"wrong {n}"]} for n in range(count)]
    (folder / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def keys(tmp_path: Path, updates: int = 14) -> tuple[str, ...]:
    folder = tmp_path / "set"
    if not folder.exists():
        copy(folder)
    return (
        *(*TINY, "loss=contrastive", "loss.temperature=0.1", f"cache_dir={tmp_path}/cache", "datasets=[big:hub]"),
        *(f"datasets.big.name={folder}", "datasets.big.streaming=true", "datasets.big.window=8"),
        f"trainer.max_steps={updates}",
    )


def ids(trainer, step: int) -> list[str]:
    return [group.id for group in trainer.loader.groups(step)]


def test_every_example_comes_once_in_each_pass_and_files_go(tmp_path):
    """Windows of 8, 8 and 6 examples by updates of 4: 2 + 2 + 2 updates a pass, in another order each pass."""
    trainer = trainer_of(*keys(tmp_path))
    passes = [[ids(trainer, step) for step in range(6 * number, 6 * number + 6)] for number in (0, 1)]
    for drawn in passes:
        assert len({name for update in drawn for name in update}) == 22
        for window in range(3):
            numbers = {int(name.split("[")[1][:-1]) for update in drawn[2 * window : 2 * window + 2] for name in update}
            assert numbers == set(range(8 * window, min(22, 8 * window + 8)))
    assert passes[0] != passes[1]
    tables = [path for path in (tmp_path / "cache" / "streams").glob("*/text_store/*") if path.is_dir()]
    assert 3 <= len(tables) <= 4  # of six windows: the current one, two before it, and the next


def test_the_curve_depends_on_neither_max_tokens_nor_processes_nor_an_interruption(tmp_path):
    given = keys(tmp_path)
    train(*given, "exp_name=whole")
    train(*given, "exp_name=parts", "trainer.max_tokens=40")
    launched = launch(*given, "exp_name=two", "trainer.max_tokens=80", processes=2)
    assert launched.returncode == 0, launched.stderr
    whole = curve(tmp_path / "cache" / "whole")
    assert len(whole) == 14
    for name in ("parts", "two"):
        assert_close(curve(tmp_path / "cache" / name), whole, rtol=1e-5, atol=1e-6)
    for stopped in (3, 8):  # inside a window; at the end of one, in the second pass
        name = f"exp_name=cut{stopped}"
        first = trainer_of(*given, name, f"trainer.save_every={stopped}")
        first.total_steps = stopped
        first.watch.total_steps = 100
        first.finish = lambda: {}
        first.train()
        train(*given, name, f"trainer.save_every={stopped}", "resume=auto", "allow_changes=true")
        cut = tmp_path / "cache" / f"cut{stopped}"
        assert_close(final_weights(cut), final_weights(tmp_path / "cache" / "whole"), rtol=0, atol=0)


@pytest.mark.parametrize(
    "more, message",
    [
        (("trainer.max_steps=null",), "it has no epoch; set trainer.max_steps"),
        (("trainer.holdout=0.1",), "trainer.holdout draws from all queries"),
        (("task=mine",), "only task=train reads a stream"),
        (("loss=kto",), "KTOLoss must count all its completions"),
        (("loss=gist",), "GISTLoss needs embeddings of all texts by another model"),
        (("datasets.big.weight=2",), "weight=2 counts the examples of an epoch"),
    ],
)
def test_what_a_stream_cannot_do_is_refused(tmp_path, more, message):
    with pytest.raises(ConfigError) as caught:
        trainer_of(*keys(tmp_path), *more, "kind=embedding")
    assert message in str(caught.value)


def test_a_reference_is_a_copy_of_the_model(tmp_path):
    """Scores of all data cannot be stored beforehand."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    rows = [{"query": f"q {n}", "passage1": f"a {n}", "passage2": f"b {n}", "preferred": "A"} for n in range(9)]
    (folder / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    given = (*TINY, "loss=rankpo", "loss.reference_free=false", "datasets=[big:hub]", f"datasets.big.name={folder}")
    given = (*given, "datasets.big.streaming=true", "datasets.big.window=4", "trainer.max_steps=5")
    trainer = trainer_of(*given, f"cache_dir={tmp_path}/c")
    assert type(trainer.reference).__name__ == "LiveReference"
    assert compose([*given]).settings.max_steps == 5
    trainer.train_step(trainer.prepare(0))
    assert trainer.state.stream == {"epoch": 0, "window": 1, "first_step": 1}
