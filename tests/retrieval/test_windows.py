"""Windows over a ranked list: the published table, the closed form against the loop, coverage, and what a pass does."""

from __future__ import annotations

import pytest

from rankpo.models.listwise.windows import windows


def number(size: int, window: int, stride: int) -> int:
    """The closed form."""
    return 0 if size <= 0 else 1 if size <= window else 1 + -(-(size - window) // stride)


@pytest.mark.parametrize(
    ("size", "window", "stride", "start", "count", "first", "last", "read"),
    [
        (100, 20, 10, 0, 9, (80, 100), (0, 20), 180),
        (40, 20, 10, 0, 3, (20, 40), (0, 20), 60),
        (25, 20, 10, 0, 2, (5, 25), (0, 15), 35),
        (21, 20, 10, 0, 2, (1, 21), (0, 11), 31),
        (30, 20, 10, 5, 2, (10, 30), (5, 20), 35),
        (50, 20, 20, 0, 3, (30, 50), (0, 10), 50),
        (101, 20, 10, 0, 10, (81, 101), (0, 11), 191),
        (8, 20, 10, 0, 1, (0, 8), (0, 8), 8),
        (20, 20, 10, 0, 1, (0, 20), (0, 20), 20),
        (100, 20, 5, 0, 17, (80, 100), (0, 20), 340),
        (1000, 20, 10, 0, 99, (980, 1000), (0, 20), 1980),
        (100, 100, 10, 0, 1, (0, 100), (0, 100), 100),
    ],
)
def test_the_published_table(size, window, stride, start, count, first, last, read):
    found = windows(start, size, window, stride)
    assert len(found) == count == number(size - start, window, stride)
    assert (found[0], found[-1]) == (first, last)
    assert sum(high - low for low, high in found) == read


def test_closed_form_and_coverage():
    """Every size below 130, window below 30 and stride: counted right, every place covered, from the end upwards."""
    for size in range(130):
        for window in range(1, 30):
            for stride in {1, (window + 1) // 2, window}:
                found = windows(0, size, window, stride)
                assert len(found) == number(size, window, stride)
                assert {place for low, high in found for place in range(low, high)} == set(range(size))
                assert found == sorted(found, reverse=True)


def test_nothing_gives_no_window():
    assert windows(0, 0, 20, 10) == [] and windows(5, 5, 20, 10) == []


@pytest.mark.parametrize("stride", [0, 21, -1])
def test_a_stride_that_skips_passages_is_refused(stride):
    with pytest.raises(ValueError, match=f"stride must be in 1 to window=20, got {stride}"):
        windows(0, 100, 20, stride)


@pytest.mark.parametrize(("passes", "stride", "settled"), [(1, 10, 10), (2, 10, 20), (3, 10, 30), (1, 20, 0)])
def test_a_perfect_window_ranker_settles_the_best_documents(passes, stride, settled):
    """P passes put P·(w - s) best documents in place, from the worst order; windows side by side settle none."""
    order = list(range(100, 0, -1))
    for _ in range(passes):
        for low, high in windows(0, 100, 20, stride):
            order[low:high] = sorted(order[low:high])
    right = next(place for place, item in enumerate(order) if item != place + 1)
    assert right == settled
