"""Runs are written to runs/; what an earlier version began in .cache goes on there."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankpo.config.compose import compose
from rankpo.config.experiment import run
from rankpo.errors import ConfigError
from rankpo.runs.folder import differences
from rankpo.tasks.base import require_data
from tests.runs import CONTRASTIVE, train

NAMED = ("datasets=[toy_pairs]", "loss=rankpo", "model=tiny_bert", "exp_name=c")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), "runs/c"),
        (("resume=auto",), "runs/c"),
        (("run_count=run1",), "runs/c/run1"),
        (("cache_dir=/data/all",), "/data/all/c"),  # as HALOs' key does
        (("runs_dir=out",), "out/c"),
        (("runs_dir=out", "cache_dir=/data/all"), "out/c"),
        (("run_dir=here",), "here"),
    ],
)
def test_the_place_of_a_run(tmp_path, monkeypatch, options, expected):
    monkeypatch.chdir(tmp_path)
    made = compose((*NAMED, *options))
    assert made.run_dir == Path(expected) and made.config["run_dir"] == expected
    assert differences({"run_dir": f"{expected}/."}, {"run_dir": expected}) == [], "earlier versions wrote this"


@pytest.mark.parametrize(
    ("begun", "options", "expected"),
    [
        ([".cache/c/config.json"], (), "runs/c"),
        ([".cache/c/config.json"], ("resume=auto",), ".cache/c"),
        ([".cache/c/config.json"], ("resume=auto", "runs_dir=runs"), "runs/c"),
        ([".cache/c/config.json", "runs/c/config.json"], ("resume=auto",), "runs/c"),
        ([".cache/c/sweep.json"], (), ".cache/c"),
        ([".cache/c/sweep.json", "runs/c/sweep.json"], (), "runs/c"),
        ([".cache/text_store"], ("resume=auto",), "runs/c"),
    ],
)
def test_what_an_earlier_version_began_goes_on_there(tmp_path, monkeypatch, begun, options, expected):
    monkeypatch.chdir(tmp_path)
    for name in begun:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("{}")
    assert compose((*NAMED, *options)).run_dir == Path(expected)


def test_an_interrupted_run_in_the_old_place_is_finished_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = (*CONTRASTIVE, "exp_name=old", "trainer.max_steps=2", "trainer.save_every=1")
    train(*options, "run_dir=.cache/old/.")
    (tmp_path / ".cache" / "old" / "FINAL").rename(tmp_path / "FINAL")
    assert train(*options, "resume=auto").run_dir == Path(".cache/old")
    assert (tmp_path / ".cache" / "old" / "FINAL" / "model.safetensors").is_file() and not Path("runs").exists()


def test_a_path_of_an_earlier_command_leads_to_the_run(tmp_path, monkeypatch):
    """Their READMEs name `.cache/NAME/run1/FINAL`; the run that the same command makes today is in runs/."""
    monkeypatch.chdir(tmp_path)
    named = ("task=report", "task.runs=[.cache/a,.cache/b]", "exp_name=r")
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / ".cache" / "b").mkdir(parents=True)
    assert list(compose(named).task.runs) == ["runs/a", ".cache/b"]
    (tmp_path / ".cache" / "a").mkdir(parents=True)
    assert list(compose(named).task.runs) == [".cache/a", ".cache/b"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["loss=contrastive"], ["task=train reads it", "datasets=rankpo datasets.rankpo.path=FILE", "datasets=jobs"]),
        (["loss=dpo", "model=tiny_pythia"], ["datasets=chat", "prompt", "datasets=toy_chat"]),
        (["loss=listwise_ranking", "model=tiny_llama"], ["datasets=ranked_lists", "datasets=toy_lists"]),
        (["task=inspect"], ["task=inspect"]),
        (["task=mine"], ["task=mine"]),
        (["task=encode"], ["task=encode"]),
        (["task=annotate", "judge=rules"], ["task=annotate"]),
        (["task=sample", "model=tiny_pythia"], ["task=sample", "datasets=chat"]),
    ],
)
def test_forgotten_data_is_asked_for(overrides, words):
    with pytest.raises(ConfigError) as caught:
        run(compose(overrides))
    (line,) = caught.value.problems
    assert all(word in line for word in words), line


def test_tasks_that_read_files_need_no_datasets(tmp_path):
    (tmp_path / "corpus.jsonl").write_text('{"id": "a", "text": "b"}\n')
    for command in (["task=encode", f"task.corpus={tmp_path}/corpus.jsonl"], ["task=evaluate", "model=tiny_bert"]):
        experiment = compose(command)
        require_data(experiment.task, experiment)


@pytest.mark.parametrize("choice", ["loss=dpo", "loss=listwise_ranking", "task=sample"])
def test_the_default_model_is_for_kinds_that_it_serves(choice):
    with pytest.raises(ConfigError, match=r"model=minilm is an encoder, .* needs a decoder; add model=llama"):
        compose([choice, "datasets=[toy_chat]"])
    assert compose(["task=inspect", "loss=dpo", "datasets=[toy_chat]"]).model.origin.endswith("L6-v2")


def test_a_run_says_what_matters_and_that_one_update_teaches_little(tmp_path, capsys):
    train(*CONTRASTIVE, "trainer.batch_size=32", f"cache_dir={tmp_path}", "exp_name=few")
    said = capsys.readouterr().err
    assert f"run directory {tmp_path}/few: all settings are in its config.json" in said
    assert (
        "loss ContrastiveLoss" in said and "1 × cpu, fp32" in said and "trainer.batch_size=32, 1 update in all" in said
    )
    assert "only 1 update in all" in said and "lower trainer.batch_size=32 or raise trainer.epochs=1" in said
    train(*CONTRASTIVE, "trainer.max_steps=1", f"cache_dir={tmp_path}", "exp_name=asked")
    assert "only 1 update" not in capsys.readouterr().err
