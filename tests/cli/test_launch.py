"""What launch.py says when it has to stop: one line, an exit code, and no trace for what was foreseen."""

import json
import os
import runpy
import subprocess
import sys

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState
from hydra.core.global_hydra import GlobalHydra

from rankpo.config.messages import run_error
from rankpo.errors import ConfigError
from rankpo.models.engine.packing import window_mask
from tests.runs import RANKPO, ROOT, TINY, train


def stopped(monkeypatch, capsys, *arguments):
    """Exit code, and what stands on stderr after the progress lines."""
    monkeypatch.setattr(sys, "argv", [str(ROOT / "launch.py"), *arguments])
    GlobalHydra.instance().clear()
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "launch.py"), run_name="__main__")
    code = end.value.code
    lines = capsys.readouterr().err.splitlines()
    assert "Traceback" not in "".join(lines)
    progress = (
        "step ",
        "data ",
        "memory: ",
        "eval ",
        "random weights",
        "tokenising",
        "computing",
        "run directory",
        "loss ",
        "only ",
    )
    return code, [line for line in lines if not line.startswith(progress)]


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_a_gradient_that_is_not_finite(tmp_path, monkeypatch, capsys):
    options = (*RANKPO, "optimizer.lr=1e38", "trainer.save_every=1", "exp_name=run", f"cache_dir={tmp_path}")
    code, lines = stopped(monkeypatch, capsys, *options)
    assert code == 1 and len(lines) == 1
    assert lines[0].startswith("update 2: the loss or its gradient is not finite; examples train-j")
    run = tmp_path / "run"
    assert not (run / "FINAL").exists()
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-1"]
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1]


def test_a_bad_record(tmp_path, monkeypatch, capsys):
    good = {"query": "q", "passage1": "a", "passage2": "b", "preferred": "A"}
    path = write(tmp_path / "pairs.jsonl", good, {name: good[name] for name in ("query", "passage1", "passage2")})
    options = (
        "loss=rankpo",
        "datasets=[rankpo]",
        f"datasets.rankpo.path={path}",
        "exp_name=run",
        f"cache_dir={tmp_path}",
    )
    code, lines = stopped(monkeypatch, capsys, *TINY, *options)
    assert code == 2 and len(lines) == 1
    assert "pairs.jsonl:2" in lines[0] and "preferred" in lines[0]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["datasets=[rankpo]", "datasets.rankpo.path=/nowhere/x.jsonl"], 2, ["/nowhere/x.jsonl", "datasets.rankpo"]),
        (["model.load_from=/nowhere/FINAL"], 2, ["model.load_from=/nowhere/FINAL: no such folder"]),
        (["model.passage_max_length=4000"], 2, ["model.passage_max_length=4000", "512 positions"]),
        (["trainer.best_metric=ndcg@7"], 2, ["trainer.best_metric=ndcg@7 is not measured", "eval_datasets is empty"]),
        (["loss=contrastive", "loss.temperature=0"], 2, ["loss.temperature must be > 0, got 0"]),
        (["loss=rankp"], 2, ["rankp", "did you mean rankpo?"]),
        (["loss.bta=5"], 2, ["loss.bta", "did you mean beta?"]),
        (["task=annotate", "judge=openai", "judge.extra={seed:1}"], 2, ["one by one", "+judge.extra.NAME=VALUE"]),
        (["loss.replay_weight=0.5", "loss.replay_temperature=0.1"], 2, ["replay_datasets"]),
        (["tracker=wandb", "tracker.mode=online"], 2, ["tracker=wandb has no key"]),
        (["model.random.model_type=bertt"], 2, ["model.random.model_type=bertt is not a model type"]),
        (["cache_dir=/proc/nowhere"], 1, ["/proc/nowhere"]),
    ],
)
def test_what_cannot_work(tmp_path, monkeypatch, capsys, options, code, words):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    given, lines = stopped(monkeypatch, capsys, *RANKPO, f"cache_dir={tmp_path}", *options)
    assert given == code, lines
    assert len(lines) == 1
    for word in words:
        assert word in lines[0]


def test_a_finished_run_and_one_in_use(tmp_path, monkeypatch, capsys):
    from rankpo.runs.folder import claim

    options = (*RANKPO, "trainer.max_steps=1", "exp_name=run", f"cache_dir={tmp_path}")
    train(*options)
    capsys.readouterr()
    before = (tmp_path / "run" / "FINAL" / "model.safetensors").stat().st_mtime_ns
    code, lines = stopped(monkeypatch, capsys, *options)
    assert code == 1 and lines == [f"{tmp_path}/run holds a finished run; set overwrite=true or another exp_name"]
    with claim(tmp_path / "run"):
        code, lines = stopped(monkeypatch, capsys, *options, "overwrite=true")
    assert code == 1 and lines == [f"{tmp_path}/run is in use by process {os.getpid()}; choose another exp_name"]
    assert (tmp_path / "run" / "FINAL" / "model.safetensors").stat().st_mtime_ns == before


def error_of(function, *arguments):
    try:
        function(*arguments)
    except Exception as error:
        return error


def ours():
    from rankpo.trainers.settings import TrainerSettings

    TrainerSettings(batch_size=0)


def test_only_what_our_code_raised_or_a_file_explains_itself(tmp_path):
    """A ValueError from inside a library is a bug: its trace must stay."""
    assert run_error(error_of(ours), {}) == "batch_size must be >= 1, got 0"
    assert run_error(error_of(ours), {"WORLD_SIZE": "2", "RANK": "1"}) == "rank 1: batch_size must be >= 1, got 0"
    assert run_error(error_of(int, "x"), {}) is None
    assert run_error(error_of(window_mask, "x", 1, True, None), {}) is None  # TypeError in a line of ours, no raise
    missing = tmp_path / "missing"
    assert run_error(error_of(missing.read_text), {}) == f"{missing}: No such file or directory"
    assert run_error(ConfigError(["a", "b"]).with_traceback(error_of(ours).__traceback__), {}) == "a\nb"


def test_from_the_shell(tmp_path):
    """The real program: exit code, and nothing but the line."""
    done = subprocess.run(
        [sys.executable, "launch.py", *RANKPO, "model.load_from=/nowhere", f"cache_dir={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (2, "model.load_from=/nowhere: no such folder\n")
