"""Signals end a run after its update, with a checkpoint and a code that says requeue; faults end it with their reason."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from rankpo.runs.signals import REQUEUE, SIGNALS, leaving_at_once, noticed
from rankpo.trainers.basic import BasicTrainer
from tests.cli.test_launch import stopped
from tests.runs import CONTRASTIVE, final_weights, train
from tests.starts import ROOT, Started, waiting_at

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
    said = [line for line in started.stderr.splitlines() if line.startswith(("data ", "random weights", "step "))]
    assert len(said) >= 3 and len(set(said)) == len(said)  # by rank 0 alone
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


def ended_by(number: signal.Signals) -> int:
    """Exit code of a process in which it is ignored from the start, as a launcher's child, and comes while it sets up."""
    child = os.fork()
    if child == 0:
        signal.signal(number, signal.SIG_IGN)
        with leaving_at_once():
            os.kill(os.getpid(), number)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("number", SIGNALS)
def test_before_the_first_update_there_is_nothing_to_be_saved(number, capfd):
    assert ended_by(number) == REQUEUE
    assert capfd.readouterr().err.startswith(f"{number.name}: stopped. Start the same command again to continue")


def test_a_signal_while_texts_are_tokenised_ends_the_run(tmp_path, monkeypatch, capsys):
    def leave(code: int) -> None:
        raise SystemExit(code)

    def tokenised(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        pytest.fail("the run went on")

    monkeypatch.setattr("rankpo.runs.signals.os._exit", leave)
    monkeypatch.setattr("rankpo.data.table.build_table", tokenised)
    code, _ = stopped(monkeypatch, capsys, *CONTRASTIVE, f"cache_dir={tmp_path}")
    assert code == REQUEUE


def test_a_signal_while_final_is_written_does_not_stop_that(tmp_path, monkeypatch):
    before = signal.signal(signal.SIGUSR1, lambda *_: pytest.fail("the signal got through"))
    finish = BasicTrainer.finish
    monkeypatch.setattr(BasicTrainer, "finish", lambda self: (os.kill(os.getpid(), signal.SIGUSR1), finish(self))[1])
    try:
        train(*CONTRASTIVE, "trainer.max_steps=1", f"cache_dir={tmp_path}")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert (tmp_path / "run" / "FINAL").is_dir()


FAULT = """
import sys, time, runpy, os
sys.path.insert(0, {root!r})
os.chdir({root!r})
from rankpo.trainers.basic import BasicTrainer
from rankpo.trainers.update import NonFiniteError
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
            "or raise trainer.timeout_minutes if it was slow",
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
