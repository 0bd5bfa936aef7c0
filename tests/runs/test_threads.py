"""The line about more threads than free cores."""

import subprocess
import sys
import time

import pytest

from rankpo.runs import threads
from rankpo.runs.threads import Clock, advice, busy_elsewhere, cores


@pytest.mark.parametrize(
    "count, processes, has, free",
    [(2, 1, 2, 2), (2, 1, 2, 1.6), (1, 8, 2, 0), (4, 2, 16, 12)],
)
def test_nothing_is_said_of_threads_that_have_cores(count, processes, has, free):
    assert advice(count, processes, has, free) is None


@pytest.mark.parametrize(
    "count, processes, has, free, words",
    [
        (2, 1, 2, 0, "2 threads share 2 cores, of which about 0.0 are free"),
        (4, 1, 2, 2, "set OMP_NUM_THREADS=2"),
        (8, 4, 16, 16, "4 processes of 8 threads share 16 cores"),
        (8, 4, 16, 16, "set OMP_NUM_THREADS=4"),
        (8, 4, 16, 2, "set OMP_NUM_THREADS=1"),
        (2, 1, 1.5, 1.4, "share 1.5 cores"),
    ],
)
def test_the_line_names_threads_cores_and_the_setting(count, processes, has, free, words):
    assert words in advice(count, processes, has, free)


def clock(wall, machine, own):
    return Clock(wall=wall, machine=machine, own=own)


@pytest.mark.parametrize(
    "last, ranks, expected",
    [
        (clock(2, 3, 2), 1, 0.5),  # of 3 seconds of work in 2 seconds, 2 are this process's
        (clock(2, 2, 2), 1, 0),
        (clock(2, 7, 2), 3, 0.5),  # two further ranks, a core each
        (clock(2, 1, 1.2), 1, 0),  # the machine's counter is coarser than the process's
    ],
)
def test_own_work_is_not_that_of_others(last, ranks, expected):
    assert busy_elsewhere(clock(0, 0, 0), last, ranks) == pytest.approx(expected)


def test_a_busy_process_beside_this_one_is_seen():
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            time.sleep(0.2)
            first = Clock.now()
            time.sleep(0.5)
            assert busy_elsewhere(first, Clock.now(), 1) > 0.3
        finally:
            other.kill()


def test_the_load_of_an_earlier_command_is_not_counted(monkeypatch):
    monkeypatch.setattr("os.getloadavg", lambda: (50.0, 50.0, 50.0))
    monkeypatch.setattr(threads, "STARTED", clock(0, 0, 0))
    monkeypatch.setattr(Clock, "now", classmethod(lambda cls: clock(5, 4, 4)))
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr(threads, "cores", lambda: 2)
    assert threads.thread_advice() is None


def test_cores_of_a_container(tmp_path):
    quota = tmp_path / "cpu.max"
    unlimited = cores(quota)  # a missing file
    assert unlimited >= 1
    for text, expected in (("max 100000", unlimited), ("50000 100000", 0.5), ("x", unlimited)):
        quota.write_text(text)
        assert cores(quota) == expected
