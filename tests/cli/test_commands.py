"""The words of `rankpo` become those of launch.py, and what cannot be meant is answered in one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rankpo.cli import commands, environment, project
from rankpo.config.compose import compose
from rankpo.config.flags import flags_last
from rankpo.config.places import accelerate_file
from rankpo.errors import ConfigError
from rankpo.runs.launcher import launcher_options
from tests.starts import ROOT

TRAIN = ["task=train", "loss=dpo"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "loss=dpo"], TRAIN),
        (["task=train", "loss=dpo"], TRAIN),
        (["train", "loss=dpo", "task=train"], TRAIN),
        (["loss=dpo", "train"], ["task=train", "loss=dpo"]),
        (["--config-dir", "train", "train"], ["task=train", "--config-dir", "train"]),
        (["-cd", "mine", "evaluate"], ["task=evaluate", "-cd", "mine"]),
        (["-m", "train", "seed=1,2"], ["task=train", "-m", "seed=1,2"]),
        (["--multirun", "train"], ["task=train", "--multirun"]),
        (["train", "~scheduler", "+a=b"], ["task=train", "~scheduler", "+a=b"]),
        (["--loss", "dpo"], ["--loss", "dpo"]),  # which flag_refusal answers
        (["--help"], ["--help"]),
        ([], ["--help"]),
    ],
)
def test_words(words, expected):
    assert commands.translated(words) == expected


def test_every_task_is_a_command():
    assert {path.stem for path in (ROOT / "config" / "task").glob("*.yaml")} == set(commands.tasks())
    assert all(commands.translated([task]) == [f"task={task}"] for task in commands.tasks())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], r"rankpo has no 'trian'; did you mean train\? \(allowed: .*init"),
        (["train", "task=evaluate"], "rankpo train sets task=train; leave task=evaluate out"),
        (["data"], "rankpo data takes one file or folder, got none"),
        (["data", "a", "b"], "got 2: a, b"),
        (["data", "nowhere.jsonl"], "rankpo data nowhere.jsonl: no such file or folder"),
    ],
)
def test_refusals(words, message):
    with pytest.raises(ConfigError, match=message):
        commands.translated(words)


@pytest.mark.parametrize("name", ["a.jsonl", "it's.jsonl", "a,b=c.jsonl", "two words.jsonl"])
def test_data_names_its_file_whatever_it_is_called(tmp_path, name):
    (tmp_path / name).write_text('{"query": "q", "positives": ["p"], "negatives": ["n"]}\n')
    experiment = compose(commands.translated(["data", str(tmp_path / name), "seed=3"]))
    assert (experiment.datasets[0].path, experiment.seed) == (str(tmp_path / name), 3)


@pytest.mark.parametrize(
    ("name", "content", "reader", "loss"),
    [
        ("a.jsonl", '{"system": "s", "question": "q", "chosen": "a", "rejected": "b"}', "chat", "dpo"),
        ("a.jsonl", '{"prompt": "p", "output_A": "a", "output_B": "b", "label": 1}', "chat", "dpo"),
        ("a.csv", "prompt,completion,label\np,c,True", "chat", "kto"),
        ("a.jsonl", '{"prompt": "p", "completion": "c"}', "chat", "sft"),
        ("a.jsonl", '{"prompt_id": "1", "prompt": [], "output": [], "reward": 2}', "chat", "ppo"),
        ("a.jsonl", '{"query": "q", "passages": ["a", "b"], "ranking": [1, 0]}', "ranked_lists", "plackett_luce"),
        ("a.json", '[{"query": {"text": "q"}, "candidates": [{"doc": {}}]}]', "ranked_lists", "plackett_luce"),
        ("a.jsonl", '{"query": "q", "passage1": "a", "passage2": "b", "preferred": "A"}', "jsonl", "rankpo"),
        ("a.jsonl", '{"anchor": "q", "positive": "a"}', "jsonl", None),
        ("a.jsonl", '{"nothing": 1}', "jsonl", None),
        ("a.jsonl", "no json", "jsonl", None),
        ("a.txt", "text", "jsonl", None),
    ],
)
def test_data_chooses_the_reader_and_the_loss_by_the_first_record(tmp_path, name, content, reader, loss):
    (tmp_path / name).write_text(content + "\n")
    found = commands.translated(["data", str(tmp_path / name)])
    assert found[1] == f"datasets=[{reader}]" and found[2].startswith(f"datasets.{reader}.path=")
    assert [word for word in found if word.startswith("loss=")] == ([] if loss is None else [f"loss={loss}"])
    given = commands.translated(["data", str(tmp_path / name), "loss=listnet"])
    assert [word for word in given if word.startswith("loss=")] == ["loss=listnet"]


def test_data_of_a_folder_of_beir(tmp_path):
    for name in ("corpus.jsonl", "queries.jsonl"):
        (tmp_path / name).touch()
    assert "datasets=[beir]" in commands.translated(["data", str(tmp_path)])
    assert commands.translated(["data", str(tmp_path), "--config-dir", "mine"])[-2:] == ["--config-dir", "mine"]
    assert "exp_name=mine" in (words := commands.translated(["data", str(tmp_path), "exp_name=mine"]))
    assert "exp_name=data" not in words


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["a=1", "--config-dir", "mine", "b=2"], ["a=1", "b=2", "--config-dir", "mine"]),
        (["-m", "a=1,2", "-cd", "mine"], ["a=1,2", "-m", "-cd", "mine"]),
        (["--config-dir=mine", "a=1"], ["a=1", "--config-dir=mine"]),
        (["--info", "searchpath", "a=1"], ["a=1", "--info", "searchpath"]),
        (["--info", "a=1"], ["a=1", "--info"]),
        (["-sc", "install=bash"], ["install=bash", "-sc"]),
    ],
)
def test_flags_stand_last(given, expected):
    assert flags_last(given) == expected


def test_the_environment_tells_no_secret(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_ThisIsASecretThatNobodyMaySee123")
    monkeypatch.setenv("HOME", str(ROOT.parent))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    text = "\n".join(environment.lines())
    assert "ThisIsASecret" not in text and str(ROOT) not in text and f"configs: ~/{ROOT.name}/config" in text
    assert "OMP_NUM_THREADS: 3" in text and f"python: {sys.version.split()[0]}" in text


def test_a_project_is_written_once_and_over_nothing(tmp_path):
    written = project.write(tmp_path)
    rows = [json.loads(line) for path in written if path.suffix == ".jsonl" for line in path.read_text().splitlines()]
    assert len(rows) == 20 and all(row["query"] and row["positives"] and row["negatives"] for row in rows)
    (tmp_path / "data" / "train.jsonl").write_text("mine")
    with pytest.raises(ConfigError, match="does not overwrite files"):
        project.write(tmp_path)
    assert (tmp_path / "data" / "train.jsonl").read_text() == "mine"


def test_options_of_accelerate_end_where_the_module_begins():
    words = ["accelerate", "launch", "--num_processes", "2", "-m", "rankpo", "train", "--num_processes", "9"]
    assert launcher_options(words)["num_processes"] == "2"


def test_a_shipped_file_of_accelerate_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = ROOT / "accelerate_config" / "fsdp.yaml"
    assert accelerate_file("accelerate_config/fsdp.yaml") == accelerate_file("fsdp") == shipped
    assert accelerate_file("other/fsdp.yaml") is None and accelerate_file("none.yaml") is None
    (tmp_path / "fsdp.yaml").touch()
    assert accelerate_file("fsdp.yaml") == Path("fsdp.yaml")


def test_help_into_a_closed_pipe_has_no_trace():
    """`rankpo --help | head -1`: the reader is gone before the writer is done."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "rankpo", "--help"], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert done.returncode == 128 + signal.SIGPIPE
    assert done.stderr == b""


@pytest.mark.parametrize("name", ["serve", "report"])
def test_runs_are_named_as_words(tmp_path, name):
    for folder in ("a", "it's b"):
        (tmp_path / folder).mkdir()
    words = [name, str(tmp_path / "a"), "task.title=x", str(tmp_path / "it's b"), "--config-dir", "conf"]
    translated = commands.translated(words)
    assert translated[-3:] == ["task.title=x", "--config-dir", "conf"]
    assert list(compose(translated[:2]).task.runs) == [f"{tmp_path}/a", f"{tmp_path}/it's b"]
    with pytest.raises(ConfigError, match=f"rankpo {name} nowhere: no such run directory"):
        commands.translated([name, "nowhere"])
