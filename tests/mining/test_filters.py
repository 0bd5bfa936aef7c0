"""Thresholds, ranges and near duplicates by hand."""

import numpy as np
import pytest

from rankpo.mining.filters import (
    above,
    below,
    ceiling,
    in_range,
    jaccard,
    near_duplicates,
    positive_score,
    sketch,
)

POSITIVES = np.array([0.80, 0.60])
CANDIDATES = np.array([0.78, 0.62, 0.58, 0.55, 0.40])


def kept(against, absolute=None, relative=None):
    return CANDIDATES[below(CANDIDATES, ceiling(positive_score(POSITIVES, against), absolute, relative))].tolist()


def test_margins_of_the_golden_example():
    """min: <= .57; max: <= .76; absolute: <= .50; mean .70: <= .665."""
    assert kept("min", relative=0.05) == [0.55, 0.40]
    assert kept("max", relative=0.05) == [0.62, 0.58, 0.55, 0.40]
    assert kept("min", absolute=0.1) == [0.40]
    assert kept("mean", relative=0.05) == [0.62, 0.58, 0.55, 0.40]
    assert kept("min") == CANDIDATES.tolist()


def test_the_range_of_the_golden_example():
    survivors = np.array(kept("max", relative=0.05))
    assert survivors[in_range(np.arange(4), 1, 3)].tolist() == [0.58, 0.55]
    assert survivors[in_range(np.arange(4), 2, None)].tolist() == [0.55, 0.40]


def test_a_relative_margin_below_zero_asks_for_less_not_more():
    """Of a positive logit -0.2: -0.2 - .05·0.2 = -0.21."""
    assert ceiling(-0.2, None, 0.05) == pytest.approx(-0.21)


def test_both_margins_take_the_stricter():
    assert ceiling(0.8, 0.1, 0.05) == pytest.approx(0.7)
    assert ceiling(0.8, 0.01, 0.05) == pytest.approx(0.76)
    assert ceiling(0.8, None, None) == float("inf")


def test_an_unknown_score_never_passes_a_bound_and_is_no_matter_without_one():
    unknown = np.array([np.nan, 0.1])
    assert below(unknown, 0.5).tolist() == [False, True]
    assert above(unknown, 0.0).tolist() == [False, True]
    assert below(CANDIDATES, ceiling(float("nan"), 0.1, None)).tolist() == [False] * 5
    assert below(unknown, ceiling(float("nan"), None, None)).tolist() == [True, True]
    assert np.isnan(positive_score(np.empty(0), "min"))


def sets(*texts):
    """Jaccard of Python's own sets of substrings."""
    first, second = ({text[n : n + 5] for n in range(max(1, len(text) - 4))} for text in texts)
    return len(first & second) / len(first | second)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("abcdef", "bcdefg", 1 / 3),  # abcde, bcdef against bcdef, cdefg
        ("ABC\n def", "abc def", 1),
        ("abc", "abc", 1),
        ("abc", "abcd", 0),
        ("aaaaaaaa", "aaaaa", 1),
        ("海底地形测绘", "海底地形测量", 1 / 3),
    ],
)
def test_jaccard_by_hand(first, second, expected):
    assert jaccard(sketch(first), sketch(second)) == pytest.approx(expected)


def test_jaccard_is_that_of_sets_within_three_standard_errors():
    letters = "".join(chr(97 + number) for number in np.random.default_rng(1).integers(0, 26, 30000))
    for size, starts in ((100, (10, 50)), (700, (100, 400)), (20000, (500, 6000, 15000))):
        for start in starts:
            first, second = letters[:size], letters[start : start + size]
            estimate = jaccard(sketch(first), sketch(second))
            assert estimate == pytest.approx(sets(first, second), abs=3 * 0.016)


def test_near_duplicates_of_positives_and_of_better_candidates():
    """The second is the positive with another end, the fourth nearly the third; a removed one removes nothing."""
    positive = "the deep sea is mapped by sonar every year"
    texts = [
        "roman coins of the second century",
        "the deep sea is mapped by sonar every yean",
        "graph colouring in polynomial time",
        "graph colouring in polynomial times",
        "roman roads",
    ]
    sets = [sketch(text) for text in texts]
    assert near_duplicates(sets, [sketch(positive)], 0.8).tolist() == [False, True, False, True, False]
    assert near_duplicates(sets, [sketch(positive)], 1.0).tolist() == [False] * 5


def test_what_was_removed_removes_nothing():
    """Windows moved by 70 of 700 characters: neighbours share 626 of 766 runs (.82), the first and the third 556 of 836."""
    letters = "".join(chr(97 + number) for number in np.random.default_rng(2).integers(0, 26, 900))
    windows = [sketch(letters[start : start + 700]) for start in (0, 70, 140)]
    assert near_duplicates(windows, [], 0.75).tolist() == [False, True, False]
