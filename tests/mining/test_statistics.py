"""A histogram as a line of text."""

from rankpo.mining.statistics import histogram_line


def test_heights_are_over_the_largest_bin_and_nothing_is_blank():
    """8 of 8 is full, 4 of 8 half way (the fifth of eight), 1 of 8 the second; a single one is seen beside thousands."""
    line = histogram_line({"edges": [0, 0.25, 0.5, 0.75, 1], "positives": [0, 1, 4, 8], "negatives": [9999, 1, 0, 0]})
    assert line == "scores 0 to 1: positives  ▂▅█, negatives █▁  "
