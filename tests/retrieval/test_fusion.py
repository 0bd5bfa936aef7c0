"""Fusion by hand."""

import numpy as np
import pytest

from rankpo.retrieval.fusion import fuse

FIRST = (np.array([7, 3, 5]), np.array([1.0, 0.75, 0.5]))
SECOND = (np.array([3, 8]), np.array([12.0, 4.0]))


def test_reciprocal_ranks_by_hand():
    """7: 1/61; 3: 1/62 + 2/61; 5: 1/63; 8: 2/62. Best first: 3, 8, 7, 5."""
    numbers, scores = fuse([FIRST, SECOND], [1.0, 2.0])
    assert numbers.tolist() == [3, 8, 7, 5]
    assert scores.tolist() == pytest.approx([1 / 62 + 2 / 61, 2 / 62, 1 / 61, 1 / 63], abs=1e-15)


def test_minmax_by_hand():
    """First: 1, .5, 0; second: 1, 0. Half of the second: 7: 1; 3: .5 + .5 = 1; 5: 0; 8: 0; ties by number."""
    numbers, scores = fuse([FIRST, SECOND], [1.0, 0.5], "minmax")
    assert numbers.tolist() == [3, 7, 5, 8]
    assert scores.tolist() == pytest.approx([1.0, 1.0, 0.0, 0.0])


def test_equal_scores_count_as_found_and_nothing_as_nothing():
    nothing = (np.array([], dtype=np.int64), np.array([]))
    numbers, scores = fuse([(np.array([4, 2]), np.array([3.0, 3.0])), nothing], [1.0, 1.0], "minmax")
    assert (numbers.tolist(), scores.tolist()) == ([2, 4], [1.0, 1.0])


def test_unknown_method_names_the_allowed():
    with pytest.raises(ValueError, match="fusion must be one of reciprocal_rank, minmax, got 'sum'"):
        fuse([FIRST], [1.0], "sum")
