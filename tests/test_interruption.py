"""Signals end a run after its update, with a checkpoint and a code that says requeue; faults end it with their reason."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from rankpo.interruption import REQUEUE, noticed
from tests.runs import CONTRASTIVE, ROOT, final_weights, launch, train
from tests.starts import Started, waiting_at

LONG = (*CONTRASTIVE, "trainer.max_steps=60", "trainer.log_every=1")


def begun(run_dir: Path) -> bool:
    """Whether its first updates are logged."""
    path = run_dir / "metrics.jsonl"
    return path.exists() and "train/loss" in path.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_writes_a_checkpoint_and_asks_for_another_run(tmp_path, number):
    place, release = f"cache_dir={tmp_path}", tmp_path / "release"
    started = Started(*LONG, place, "exp_name=stopped", before=waiting_at(58, release))
    started.until(lambda: begun(tmp_path / "stopped"))
    started.signal(number)
    release.touch()
    assert started.wait() == REQUEUE == 75, started.stderr
    (checkpoint,) = (tmp_path / "stopped" / "checkpoints").iterdir()
    step = json.loads((checkpoint / "state.json").read_text())["step"]
    assert 0 < step < 60
    assert f"{number.name}: stopped after update {step} of 60, checkpoint written" in started.stderr
    if number is signal.SIGUSR1:
        train(*LONG, place, "exp_name=stopped", "resume=auto")
        train(*LONG, place, "exp_name=whole")
        whole, continued = final_weights(tmp_path / "whole"), final_weights(tmp_path / "stopped")
        assert all(bool((whole[name] == continued[name]).all()) for name in whole)


def test_a_signal_to_one_rank_stops_all(tmp_path):
    """The run would not end by itself."""
    started = Started(*LONG, "trainer.max_steps=1000000", "exp_name=two", f"cache_dir={tmp_path}", processes=2)
    started.until(lambda: begun(tmp_path / "two"))
    started.signal(signal.SIGUSR1, rank=1)
    assert started.wait() == REQUEUE, started.stderr
    assert started.stderr.count("SIGUSR1: stopped after update") == 1, started.stderr
    assert len(list((tmp_path / "two" / "checkpoints").iterdir())) == 1


def test_signals_outside_do_what_they_did(tmp_path):
    calls = []
    before = signal.signal(signal.SIGUSR1, lambda *_: calls.append("mine"))
    try:
        with noticed() as notice:
            os.kill(os.getpid(), signal.SIGUSR1)
        assert (notice.signal, calls) == ("SIGUSR1", [])
        os.kill(os.getpid(), signal.SIGUSR1)
        assert calls == ["mine"]
    finally:
        signal.signal(signal.SIGUSR1, before)


FAULT = """
import sys, time, runpy, os
sys.path.insert(0, {root!r})
os.chdir({root!r})
from rankpo.trainers.basic import BasicTrainer, NonFiniteError
step = BasicTrainer.train_step
def faulty(self, update):
    if os.environ["RANK"] == "1" and self.state.step == 2:
        {fault}
    return step(self, update)
BasicTrainer.train_step = faulty
sys.argv[0] = "launch.py"
runpy.run_path("launch.py", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("fault", "options", "words"),
    [
        ("raise OSError(5, 'Input/output error', '/data/part-3')", (), "rank 1: /data/part-3: Input/output error"),
        pytest.param(  # the launcher waits half a minute for the rank that hangs
            "time.sleep(40)",
            ("trainer.timeout_minutes=0.1",),
            "took longer than trainer.timeout_minutes",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_happens_to_one_rank_ends_all_with_its_message(tmp_path, fault, options, words):
    program = tmp_path / "faulty.py"
    program.write_text(FAULT.format(root=str(ROOT), fault=fault))
    options = (*LONG, "exp_name=faulty", f"cache_dir={tmp_path}", *options)
    started = Started(*options, processes=2, program=program)
    assert started.wait() == 1, started.stderr
    assert words in started.stderr, started.stderr
    assert not (tmp_path / "faulty" / "FINAL").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB, which a run fills while it saves."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a tmpfs cannot be mounted here: it needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_fills_stops_the_run_and_leaves_the_last_checkpoint(tmp_path, small_disk):
    options = (*LONG, "trainer.save_every=1", "trainer.keep_checkpoints=60", f"cache_dir={tmp_path / 'cache'}")
    run_dir = small_disk / "run"
    done = launch(*options, "exp_name=full", f"run_dir={run_dir}")
    assert done.returncode == 1
    assert "the disk is full; nothing was replaced, earlier files are intact" in done.stderr, done.stderr
    from rankpo.checkpoint import CheckpointStore, damage

    kept = CheckpointStore(run_dir).list()
    assert len(kept) >= 2
    assert [damage(checkpoint.path) for checkpoint in kept] == [None] * len(kept)
    assert not list(run_dir.glob("checkpoints/*.tmp-*"))


def test_a_directory_that_cannot_be_written(tmp_path):
    if Path("/proc/sys").is_dir() is False:
        pytest.skip("no /proc: nothing that even root cannot write to")
    done = launch(*LONG, "exp_name=nowhere", f"cache_dir={tmp_path}", "run_dir=/proc/sys/rankpo")
    assert done.returncode == 1
    assert "/proc/sys/rankpo" in done.stderr
    assert "Traceback" not in done.stderr
