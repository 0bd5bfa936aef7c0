"""The line about more threads than free cores."""

import pytest

from rankpo.runs.threads import advice, cores


@pytest.mark.parametrize(
    "threads, processes, free, load",
    [(2, 1, 2, 0.3), (2, 1, 2, 1.0), (1, 8, 2, 9.0), (4, 2, 16, 5.0)],
)
def test_nothing_is_said_of_threads_that_have_cores(threads, processes, free, load):
    assert advice(threads, processes, free, load) is None


@pytest.mark.parametrize(
    "threads, processes, has, load, words",
    [
        (2, 1, 2, 3.5, "2 threads share 2 cores, of which about 0.0 are free (load 3.5)"),
        (4, 1, 2, 0.0, "set OMP_NUM_THREADS=2"),
        (8, 4, 16, 1.0, "4 processes of 8 threads share 16 cores"),
        (8, 4, 16, 1.0, "set OMP_NUM_THREADS=4"),
        (2, 1, 1.5, 0.0, "share 1.5 cores"),
    ],
)
def test_the_line_names_threads_cores_and_the_setting(threads, processes, has, load, words):
    assert words in advice(threads, processes, has, load)


def test_cores_of_a_container(tmp_path):
    quota = tmp_path / "cpu.max"
    unlimited = cores(quota)  # a missing file
    assert unlimited >= 1
    for text, expected in (("max 100000", unlimited), ("50000 100000", 0.5), ("x", unlimited)):
        quota.write_text(text)
        assert cores(quota) == expected
