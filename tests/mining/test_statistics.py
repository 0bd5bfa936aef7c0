"""Lines of text about what was mined."""

from rankpo.mining.summary import emptiness, histogram_line


def test_queries_without_negatives_are_said_with_what_took_them():
    values = {
        "without_negatives": 2,
        "queries": 3,
        "candidates": 300,
        "removed": {"positives": 5, "range": 0, "margin": 290},
    }
    assert emptiness(values).startswith(
        "2 of 3 queries have no negative; of 300 candidates were removed: positives 5, margin 290. Widen mining.top_k"
    )


def test_heights_are_over_the_largest_bin_and_nothing_is_blank():
    """8 of 8 is full, 4 of 8 half way (the fifth of eight), 1 of 8 the second; a single one is seen beside thousands."""
    line = histogram_line({"edges": [0, 0.25, 0.5, 0.75, 1], "positives": [0, 1, 4, 8], "negatives": [9999, 1, 0, 0]})
    assert line == "scores 0 to 1: positives  ▂▅█, negatives █▁  "
