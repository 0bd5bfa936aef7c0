"""Runs of commit 0a9aa74, which had other modules and keys: they continue, are evaluated, and count as finished."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rankpo.config.moved import comparable, current, translated
from tests.runs import ROOT, train

FIXTURE = ROOT / "tests" / "fixtures" / "runs_0a9aa74.tar.gz"
BERT = "{model_type:bert,hidden_size:8,num_hidden_layers:1,num_attention_heads:1,intermediate_size:16,max_position_embeddings:64}"
SMALL = [f"model.random={BERT}", "model.query_max_length=32", "model.passage_max_length=64"]


@pytest.fixture
def old_runs(tmp_path: Path) -> Path:
    """The runs, in a folder whose name their configs hold."""
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(tmp_path, filter="data")
    for path in tmp_path.rglob("*.json"):
        if path.name in ("config.json", "sweep.json"):
            path.write_text(path.read_text().replace("/tmp/fx", str(tmp_path)))
    return tmp_path


def test_targets_have_todays_names():
    assert current("rankpo.data.jobs.Jobs") == "rankpo.data.generated.jobs.Jobs"
    assert current("torch.optim.AdamW") == "torch.optim.AdamW"
    assert translated([{"_target_": "rankpo.search.SearchSettings", "a": 1}]) == [
        {"_target_": "rankpo.sweeps.optuna.SearchSettings", "a": 1}
    ]


def test_a_key_of_a_later_version_is_a_difference_unless_it_has_its_default():
    old = {"loss": {"_target_": "rankpo.losses.dpo.DPOLoss", "beta": 0.1}}
    same = {"loss": {"_target_": "rankpo.losses.dpo.DPOLoss", "beta": 0.1, "label_smoothing": 0.0}}
    other = {"loss": {"_target_": "rankpo.losses.dpo.DPOLoss", "beta": 0.1, "label_smoothing": 0.1}}
    assert comparable(old) == comparable(same) != comparable(other)


def test_an_interrupted_run_continues_to_the_same_weights(old_runs, capsys):
    final = old_runs / "contrastive" / "FINAL"
    expected = load_file(final.rename(old_runs / "expected") / "model.safetensors")
    arguments = ["loss=contrastive", "model=tiny_bert", "datasets=[toy_contrastive]", *SMALL, "trainer.max_steps=4"]
    sizes = ["trainer.save_every=2", "trainer.batch_size=8", "trainer.log_every=1"]
    train(*arguments, *sizes, f"cache_dir={old_runs}", "exp_name=contrastive", "resume=auto")
    assert "continuing from" in capsys.readouterr().err
    found = load_file(final / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=0)


def test_jobs_of_an_old_sweep_are_finished(old_runs):
    note = json.loads((old_runs / "sweep" / "sweep.json").read_text())
    command = [sys.executable, "launch.py", "-m", *note["arguments"]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.count("finished before") == 2, done.stdout + done.stderr


@pytest.mark.parametrize("run", ["contrastive", "sft", "reranker", "listwise", "ppo", "bradley-terry"])
def test_old_runs_are_evaluated(old_runs, run, capsys):
    data = {"listwise": "toy_lists", "contrastive": "toy_pairs", "reranker": "toy_pairs"}.get(run, "toy_chat")
    train(
        "task=evaluate", f"task.run={old_runs / run}", f"eval_datasets=[{data}]", f"cache_dir={old_runs}", "exp_name=e"
    )
    assert "FINAL" in capsys.readouterr().err
