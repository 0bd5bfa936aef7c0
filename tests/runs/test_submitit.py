"""hydra/launcher=submitit_slurm: the processes of a job find each other; sweeps on a real Slurm of two nodes."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest
from torch.testing import assert_close

from rankpo.errors import ConfigError
from rankpo.runs import submitit
from tests.runs import CONTRASTIVE, ROOT, curve, train
from tests.slurm import cluster, skip_without_slurm


def test_all_tasks_of_a_job_meet_at_one_place():
    hosts = ["n1", "n2"]
    place = submitit.meeting_place("17_3", hosts, {})
    assert place == submitit.meeting_place("17_3", hosts, {})
    assert place["MASTER_ADDR"] == "n1"
    ports = {submitit.meeting_place(f"17_{number}", hosts, {})["MASTER_PORT"] for number in range(20)}
    assert len(ports) == 20 and all(20000 <= int(port) < 40000 for port in ports)
    assert submitit.meeting_place("17", ["n1"], {})["MASTER_ADDR"] == "127.0.0.1"
    assert submitit.meeting_place("17", hosts, {"RANKPO_ADDRESS": "10.0.0.1"})["MASTER_ADDR"] == "10.0.0.1"


def test_ranks_come_from_submitit(monkeypatch):
    """Task 3 of 4 on two nodes: the second one of the second node."""
    pytest.importorskip("submitit", reason="pip install 'rankpo[slurm]'")
    job = {"job_id": "8", "num_tasks": 4, "num_nodes": 2, "global_rank": 3, "local_rank": 1, "hostnames": ["a", "b"]}
    monkeypatch.setattr("submitit.JobEnvironment", lambda: SimpleNamespace(**job))
    monkeypatch.setattr(os, "environ", {"SUBMITIT_EXECUTOR": "slurm"})
    submitit.join()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
    assert [os.environ[name] for name in names] == ["3", "4", "1", "2", "a"]


@pytest.mark.parametrize("environment", [{}, {"SUBMITIT_EXECUTOR": "slurm", "RANK": "1"}])
def test_elsewhere_nothing_is_changed(monkeypatch, environment):
    monkeypatch.setattr(os, "environ", dict(environment))
    submitit.join()
    assert os.environ == environment


def test_a_config_error_comes_back_as_it_was():
    error = pickle.loads(pickle.dumps(ConfigError(["a must be 1", "b must be 2"])))
    assert error.problems == ["a must be 1", "b must be 2"] and str(error) == "a must be 1\nb must be 2"


@pytest.mark.slow
def test_a_sweep_on_two_nodes(tmp_path, monkeypatch):
    """Two jobs of two tasks, one on each node: the curve of one process; started again, nothing runs; one that cannot
    work is noted with its reason."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install 'rankpo[slurm]'")
    skip_without_slurm()
    monkeypatch.chdir(ROOT)
    options = (*CONTRASTIVE, "trainer.max_steps=5", f"cache_dir={tmp_path}")
    train(*options, "exp_name=one", "seed=1")
    launcher = ("hydra/launcher=submitit_slurm", "hydra.launcher.nodes=2", "hydra.launcher.tasks_per_node=1")
    launcher = (*launcher, "hydra.launcher.timeout_min=5", "hydra.launcher.cpus_per_task=1")
    folder = tmp_path / "s"

    def run(*overrides: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "launch.py", "-m", *launcher, *options, "exp_name=s", *overrides],
            env={**nodes.environment, "RANKPO_ADDRESS": "127.0.0.1", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    with cluster(tmp_path / "slurm") as nodes:
        first = run("seed=1,2")
        assert first.returncode == 0, first.stderr
        written = {path: path.stat().st_mtime_ns for path in folder.glob("seed=*/FINAL/model.safetensors")}
        second = run("seed=1,2,x")
    assert "2 jobs" in first.stdout and "3 jobs" in second.stdout
    assert len(written) == 2
    states = {path.parent.name: json.loads(path.read_text()) for path in folder.glob(f"*/{folder.JOB_FILE}")}
    assert states["seed=1"]["state"] == states["seed=2"]["state"] == "finished"
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())
    assert states["seed=x"]["state"] == "failed" and states["seed=x"]["error"].startswith("seed must be")
    assert second.returncode == 2 and "seed must be" in second.stderr
    assert_close(curve(folder / "seed=1"), curve(tmp_path / "one"), rtol=1e-5, atol=1e-6)
