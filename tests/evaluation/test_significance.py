"""Intervals and tests by hand and against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from rankpo.evaluation.significance import compare, grouped, holm, interval, sign_flip


def test_holm_golden():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]


def test_sign_flip_by_hand():
    assert sign_flip([1, 1, 1]) == 2 / 8  # +++ and --- of eight
    assert sign_flip([1, -1]) == 1.0
    assert sign_flip([0.0, 0.0]) == 1.0


def test_sign_flip_equals_scipy():
    for size in (9, 40):
        values = np.random.default_rng(size).normal(0.3, 1, size)
        expected = stats.permutation_test(
            (values,), np.mean, permutation_type="samples", n_resamples=100_000, rng=np.random.default_rng(1)
        ).pvalue
        assert sign_flip(values) == pytest.approx(expected, abs=1e-12 if size == 9 else 4e-3)


def test_interval_equals_scipy_and_covers():
    values = np.random.default_rng(3).random(50)
    low, high = interval(values)
    expected = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, rng=5).confidence_interval
    assert (low, high) == (pytest.approx(expected.low, abs=3e-3), pytest.approx(expected.high, abs=3e-3))
    assert interval(values) == (low, high)  # seeded
    assert interval([0.4]) == (0.4, 0.4)


def test_compare_counts_and_pairs():
    old = {"a": 0.0, "b": 0.5, "c": 1.0, "only old": 1.0}
    new = {"a": 0.5, "b": 0.5, "c": 0.75, "only new": 0.0}
    found = compare(new, old)
    assert (found.queries, found.wins, found.ties, found.losses) == (3, 1, 1, 1)
    assert found.difference == pytest.approx(0.25 / 3)
    expected = stats.ttest_rel([0.5, 0.5, 0.75], [0.0, 0.5, 1.0]).pvalue
    assert found.t_p == pytest.approx(expected)
    assert math.isnan(compare({"a": 1.0}, {"a": 0.5}).t_p)
    with pytest.raises(ValueError, match="have no query in common"):
        compare({"x": 1.0}, {"y": 1.0})


def test_pairs_of_one_query_are_one_value():
    items = {"q/0": {"accuracy": 1.0, "group": 7}, "q/1": {"accuracy": 0.0, "group": 7}, "r": {"accuracy": 1.0}}
    assert grouped(items, "accuracy") == {"7": 0.5, "r": 1.0}


@pytest.mark.parametrize("size", [1.0, 1e-9, 1e-14, 1e6])
def test_the_t_test_is_there_at_any_size_of_difference(size):
    """Differences of 1, 2, 4 times `size` against 0: t = 7/3 / √(7/9), whatever the unit."""
    new = {"a": size, "b": 2 * size, "c": 4 * size}
    expected = stats.ttest_1samp([1, 2, 4], 0).pvalue
    assert compare(new, dict.fromkeys(new, 0.0)).t_p == pytest.approx(expected)


def test_equal_differences_have_no_t_test_though_rounding_tells_them_apart():
    """0.3 - 0.2 and 0.8 - 0.7 are a tenth each, and differ in the last digit."""
    assert 0.3 - 0.2 != 0.8 - 0.7
    found = compare({"a": 0.3, "b": 0.8}, {"a": 0.2, "b": 0.7})
    assert math.isnan(found.t_p) and found.difference == pytest.approx(0.1)
    slightly = compare({"a": 0.3, "b": 0.8 + 1e-7}, {"a": 0.2, "b": 0.7})
    assert slightly.t_p == pytest.approx(2 / math.pi * 5e-7, rel=1e-3)  # one degree of freedom: t = .1/(5e-8)
