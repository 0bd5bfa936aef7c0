"""scripts/slurm_batch.sh on a real Slurm of two nodes: the curve of one process, also when it is preempted."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.testing import assert_close

from tests.runs import CONTRASTIVE, ROOT, curve, final_weights, train
from tests.slurm import Cluster, cluster, skip_without_slurm

STEPS = 400
SHORT = 20  # updates of the job that nobody disturbs
# a small rate: over hundreds of updates a larger one makes differences of rounding grow
OVERRIDES = (*CONTRASTIVE, "optimizer.lr=0.0001", "trainer.log_every=1", f"trainer.max_steps={STEPS}")


def submit(slurm: Cluster, folder: Path, name: str, *more: str) -> str:
    """The job's number. more: further overrides."""
    settings = {"RANKPO_ADDRESS": "127.0.0.1", "RANKPO_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    log = f"--output={folder / name}.log"
    where = (f"exp_name={name}", f"cache_dir={folder}")
    command = ("sbatch", "--parsable", "--nodes=2", log, str(ROOT / "scripts" / "slurm_batch.sh"))
    return slurm.call(*command, *OVERRIDES, *more, *where, **settings).strip()


def wait(slurm: Cluster, job: str, states: set[str], log: Path, seconds: float = 300) -> None:
    """Until the job is in one of the states."""
    ends = time.monotonic() + seconds
    while (state := slurm.state(job)) not in states:
        text = log.read_text() if log.exists() else "no log"
        assert time.monotonic() < ends and state not in ("FAILED", "CANCELLED"), f"{state}\n{text}"
        time.sleep(0.2)


@pytest.mark.slow
def test_two_nodes_give_the_curve_of_one_process_also_after_a_preemption(tmp_path, monkeypatch):
    skip_without_slurm()
    monkeypatch.chdir(ROOT)
    train(*OVERRIDES, "exp_name=one", f"cache_dir={tmp_path}")
    log = tmp_path / "two.log"
    with cluster(tmp_path / "slurm") as slurm:
        job = submit(slurm, tmp_path, "two")
        metrics, ends = tmp_path / "two" / "metrics.jsonl", time.monotonic() + 300
        while not (metrics.exists() and "train/loss" in metrics.read_text()):
            assert time.monotonic() < ends and slurm.state(job) in ("PENDING", "RUNNING"), log.read_text()
            time.sleep(0.02)
        slurm.call("scancel", "--signal=USR1", "--batch", job)  # what Slurm does before a time limit
        wait(slurm, job, {"PENDING"}, log)
        assert not (tmp_path / "two" / "FINAL").exists()
        assert 0 < len(curve(tmp_path / "two")) < STEPS
        # started sooner, it fails: its nodes still hold the first start
        slurm.wait_until_idle()
        while slurm.state(job) == "PENDING":  # Slurm holds what it requeues back for a while
            subprocess.run(
                ["scontrol", "update", f"JobId={job}", "StartTime=now"],
                env=slurm.environment,
                check=False,
                capture_output=True,
            )
            time.sleep(0.2)
        wait(slurm, job, {"COMPLETED"}, log)
        plain = submit(slurm, tmp_path, "plain", f"trainer.max_steps={SHORT}")
        wait(slurm, plain, {"COMPLETED"}, tmp_path / "plain.log")
    assert_close(curve(tmp_path / "plain"), curve(tmp_path / "one")[:SHORT], rtol=1e-5, atol=1e-6)
    text = log.read_text()
    assert "SIGUSR1: stopped after update" in text
    assert f"job {job} goes back to the queue" in text
    assert "continuing from" in text
    assert_close(curve(tmp_path / "two"), curve(tmp_path / "one"), rtol=1e-5, atol=1e-6)
    assert_close(final_weights(tmp_path / "two"), final_weights(tmp_path / "one"), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_one_launch_over_two_nodes_of_an_interactive_allocation(tmp_path, monkeypatch):
    skip_without_slurm()
    monkeypatch.chdir(ROOT)
    short = (*OVERRIDES, f"trainer.max_steps={SHORT}", f"cache_dir={tmp_path}")
    train(*short, "exp_name=one")
    settings = {"RANKPO_ADDRESS": "127.0.0.1", "RANKPO_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    with cluster(tmp_path / "slurm") as slurm:
        launch = str(ROOT / "scripts" / "slurm_launch.sh")
        slurm.call("salloc", "--nodes=2", launch, *short, "exp_name=two", **settings)
    assert_close(curve(tmp_path / "two"), curve(tmp_path / "one"), rtol=1e-5, atol=1e-6)
    assert_close(final_weights(tmp_path / "two"), final_weights(tmp_path / "one"), rtol=1e-4, atol=1e-5)
