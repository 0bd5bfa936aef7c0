"""Sweeps: names, table, skipping, and real jobs of two processes."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest

from rankpo import sweep
from rankpo.config_errors import ConfigError, multirun_refusal
from rankpo.launching import command, own_words, quoted
from tests.runs import curve, launch
from tests.starts import Started

JOBS = ("loss=rankpo", "model=tiny_bert", "datasets=[toy_pairs]", "trainer.max_steps=2")


def test_a_job_is_named_by_what_it_varies():
    overrides = ["loss=rankpo", "loss.beta=2", "model.name_or_path=a/b"]
    assert sweep.varied(overrides, ["-m", "loss=rankpo", "loss.beta=1,2", "model.name_or_path=a/b,c"]) == overrides[1:]
    assert sweep.job_name(overrides[1:]) == "loss.beta=2,model.name_or_path=a_b"


def test_long_names_stay_different():
    names = {sweep.job_name([f"model.name_or_path={'x' * 150}{number}"]) for number in range(3)}
    assert len(names) == 3
    assert max(map(len, names)) < 200


def row(seed: str, beta: str, value: float, state: str = "finished") -> dict:
    return {"job": f"{beta},{seed}", "state": state, "seed": seed, "loss.beta": beta, "dev/ndcg@10": value}


def test_table_groups_seeds_and_sorts_by_the_metric():
    rows = [
        row("1", "1", 0.2),
        row("2", "1", 0.4),
        row("1", "2", 0.5),
        row("2", "2", 0.9),
        row("3", "2", 0.1, "failed"),
    ]
    first, second, failed = sweep.summary(rows, "dev/ndcg@10")
    assert (first["loss.beta"], first["seeds"], first["dev/ndcg@10"]) == ("2", 2, pytest.approx(0.7))
    assert second["±"] == pytest.approx(0.2 / 2**0.5)  # two values: their distance over √2
    assert failed["state"] == "failed"


def test_table_names_the_metrics_there_are():
    with pytest.raises(ValueError, match=r"dev/ndcg@20 is not among .*dev/ndcg@10"):
        sweep.summary([row("1", "1", 0.2)], "dev/ndcg@20")


def test_command_takes_torchrun_for_several_plain_processes(tmp_path):
    file = tmp_path / "cpu.yaml"
    file.write_text("distributed_type: MULTI_CPU\nnum_processes: 3\n")
    assert command(str(file), None)[1:] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    assert command(None, None) == [sys.executable]
    file.write_text("distributed_type: FSDP\nnum_processes: 2\n")
    assert "--config_file" in command(str(file), None)
    with pytest.raises(ConfigError, match="no such file"):
        command(str(tmp_path / "absent.yaml"), None)


def test_errors_are_shown_without_the_launchers_words():
    log = "step 1\nloss.beta must be > 0\nloss.beta must be > 0\nE1 torch/distributed/elastic failed\nTraceback\n"
    assert own_words(log) == "step 1 | loss.beta must be > 0"
    assert quoted(Path("/a/b=1,c'd")) == r"'/a/b=1,c\'d'"


def test_a_sweep_in_one_launch_of_several_processes_is_refused():
    refusal = multirun_refusal(["-m", "loss.beta=1,2"], {"WORLD_SIZE": "2"})
    assert refusal is not None and "python launch.py -m loss.beta=1,2" in refusal
    assert multirun_refusal(["-m", "loss.beta=1,2"], {}) is None


def test_sweep_in_one_process_skips_what_is_finished(tmp_path):
    first = launch("-m", *JOBS, "loss.beta=1,-1", f"cache_dir={tmp_path}", "exp_name=s")
    assert first.returncode == 2
    assert "loss.beta must be > 0, got -1" in first.stderr
    assert (tmp_path / "s" / "loss.beta=-1" / "sweep_job.json").read_text().count("must be > 0, got -1") == 1
    second = launch("-m", *JOBS, "loss.beta=1,2", "seed=42", f"cache_dir={tmp_path}", "exp_name=s")
    assert second.returncode == 0, second.stderr
    again = launch("-m", *JOBS, "loss.beta=1,2", "seed=42", f"cache_dir={tmp_path}", "exp_name=s")
    assert again.stderr.count("finished before") + again.stdout.count("finished before") == 2
    with (tmp_path / "s" / "sweep.csv").open() as file:
        states = {line["loss.beta"]: line["state"] for line in csv.DictReader(file) if line["loss.beta"]}
    assert states["1"] == states["2"] == "finished"


def test_sweep_of_two_processes_killed_and_continued(tmp_path):
    """The driver is killed while its first job runs; started again, every job is there once."""
    options = ("-m", "hydra/launcher=rankpo_accelerate", "hydra.launcher.num_processes=2", *JOBS)
    options = (*options, "loss.beta=1,2", f"cache_dir={tmp_path}", "exp_name=s")
    folder = tmp_path / "s"
    driver = Started(*options)
    driver.until(lambda: list(folder.glob("*/launch.log")))
    driver.kill()
    done = launch(*options)
    assert done.returncode == 0, done.stderr
    jobs = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/sweep_job.json")}
    assert {name: job["state"] for name, job in jobs.items()} == {"loss.beta=1": "finished", "loss.beta=2": "finished"}
    for name in jobs:
        assert (folder / name / "FINAL").is_dir()
        assert len(curve(folder / name)) == 1  # one line of a run of two updates: nothing was logged twice
