"""Draws: the golden weights, frequencies against the exact probabilities, and what randomness depends on."""

from itertools import permutations

import numpy as np
import pytest

from rankpo.mining.sampling import cluster_labels, cluster_log_weights, draw, random_rows, uniforms

LABELS = np.array([0, 0, 1, 0, 1, 2])


def test_cluster_weights_of_the_golden_example():
    """Labels 0 0 1 0 1 2, λ = .5: 1, .5, 1, .25, .5, 1; the first draw has 4/17, 2/17, 4/17, 1/17, 2/17, 4/17."""
    weights = np.exp(cluster_log_weights(LABELS, 0.5))
    assert weights.tolist() == pytest.approx([1, 0.5, 1, 0.25, 0.5, 1])
    assert (weights / weights.sum()).tolist() == pytest.approx([4 / 17, 2 / 17, 4 / 17, 1 / 17, 2 / 17, 4 / 17])
    assert np.exp(cluster_log_weights(LABELS, 1.0)).tolist() == [1] * 6
    assert np.isfinite(cluster_log_weights(np.zeros(5000, dtype=int), 0.1)).all()


def test_first_draws_have_the_golden_frequencies():
    log_weights = cluster_log_weights(LABELS, 0.5)
    first = [int(draw(log_weights, 1, uniforms(6, 3, f"q{query}"))[0]) for query in range(20000)]
    expected = np.array([4, 2, 4, 1, 2, 4]) / 17
    deviation = np.sqrt(expected * (1 - expected) / 20000)
    assert (abs(np.bincount(first, minlength=6) / 20000 - expected) < 4 * deviation).all()


def test_sets_of_two_have_the_probability_of_successive_draws():
    """P{i, j} = w_i/W · w_j/(W - w_i) + w_j/W · w_i/(W - w_j), summed over both orders."""
    weights = np.array([1, 0.5, 0.25])
    exact = dict.fromkeys([(0, 1), (0, 2), (1, 2)], 0.0)
    for i, j in permutations(range(3), 2):
        exact[min(i, j), max(i, j)] += weights[i] / weights.sum() * weights[j] / (weights.sum() - weights[i])
    found = dict.fromkeys(exact, 0)
    for query in range(20000):
        found[tuple(draw(np.log(weights), 2, uniforms(3, 1, f"q{query}")).tolist())] += 1
    for pair, probability in exact.items():
        assert found[pair] / 20000 == pytest.approx(probability, abs=4 * np.sqrt(probability / 20000))


def test_draws_are_different_in_order_and_as_many_as_there_are():
    drawn = draw(np.zeros(30), 10, uniforms(30, 0, "q"))
    assert len(set(drawn.tolist())) == 10
    assert drawn.tolist() == sorted(drawn.tolist())
    assert draw(np.zeros(3), 10, uniforms(3, 0, "q")).tolist() == [0, 1, 2]
    assert len(draw(np.empty(0), 10, uniforms(0, 0, "q"))) == 0


def test_numbers_depend_on_seed_and_query_alone():
    assert uniforms(5, 1, "q").tolist() == uniforms(9, 1, "q")[:5].tolist()
    assert not np.array_equal(uniforms(5, 1, "q"), uniforms(5, 2, "q"))
    assert not np.array_equal(uniforms(5, 1, "q"), uniforms(5, 1, "p"))
    many = uniforms(20000, 7, "q")
    assert many.min() > 0 and many.max() < 1
    assert many.mean() == pytest.approx(0.5, abs=0.01)


def test_clusters_are_those_of_separate_clouds_and_never_more_than_vectors():
    generator = np.random.default_rng(0)
    centres = np.array([[10.0, 0], [0, 10], [-10, -10]])
    truth = np.array([0, 1, 2, 2, 1, 0, 0, 1, 2])
    labels = cluster_labels(centres[truth] + generator.standard_normal((9, 2)) * 0.01, 3, 42)
    assert len({(a, b) for a, b in zip(truth, labels.tolist(), strict=True)}) == 3
    assert sorted(cluster_labels(np.eye(3, dtype=np.float32), 10, 42).tolist()) == [0, 1, 2]
    assert cluster_labels(np.ones((4, 2)), 3, 42).tolist() == [0, 0, 0, 0]
    assert cluster_labels(np.ones((1, 2)), 3, 42).tolist() == [0]
    assert cluster_labels(np.ones((0, 2)), 3, 42).tolist() == []


def test_random_rows_are_different_rows_of_the_corpus():
    rows = random_rows(50, 60, 1, "q")
    assert len(set(rows.tolist())) == 50
    assert set(rows.tolist()) <= set(range(60))
    assert sorted(random_rows(100, 7, 1, "q").tolist()) == list(range(7))
    assert random_rows(5, 60, 1, "q").tolist() == rows[:5].tolist()
    counts = np.bincount(np.concatenate([random_rows(3, 10, 1, f"q{n}") for n in range(3000)]), minlength=10)
    assert counts.tolist() == pytest.approx([900] * 10, rel=0.15)
