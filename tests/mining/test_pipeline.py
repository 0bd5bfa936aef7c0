"""One query's way, by hand: what each step removes, what is drawn, and what happens when there is too little."""

import numpy as np
import pytest

from rankpo.mining.candidates import Found
from rankpo.mining.data import MiningData, Query
from rankpo.mining.pipeline import Sampler, TooFewError, exclude, mine_all, survive
from rankpo.mining.settings import MiningSettings
from rankpo.retrieval.corpus import text_key

TEXTS = ["soil", "clay", "coins", "graphs", "roads", "boats", "birds", "query text", "extra positive"]
NUMBERS = np.array([1, 7, 4, 2, 3, 0, 5])
SCORES = np.array([0.9, 0.85, 0.78, 0.62, 0.58, 0.55, 0.40])


def data_of(positives=(1, 8), text="query text"):
    """Eight candidates and one positive beside them; the query's text is one of the candidates."""
    query = Query("q1", text, list(positives), rows=1)
    numbers = {text_key(value): number for number, value in enumerate(TEXTS)}
    return MiningData([query], [f"d{n}" for n in range(9)], TEXTS, 8, numbers, merged=0)


FOUND = Found(NUMBERS, SCORES, np.array([0.8, 0.6]))


def mine(data=None, **keys):
    settings = MiningSettings(num_negatives=keys.pop("num_negatives", 3), **keys)
    data = data or data_of()
    candidates = exclude(settings, data, 0, FOUND)
    vectors = np.eye(9, dtype=np.float32)[np.array([0, 1, 0, 1, 0, 1, 2, 3, 4])]
    return mine_all(settings, data, [candidates], lambda numbers: vectors[numbers], [FOUND], seed=3)


def only(mined):
    assert list(mined) == [""]
    assert len(mined[""]) == 1
    return mined[""][0]


def numbers(item):
    return [negative.number for negative in item.negatives]


def test_own_text_and_all_positives_never_come_back():
    item = only(mine(num_negatives=10))
    assert numbers(item) == [4, 2, 3, 0, 5]
    assert [negative.rank for negative in item.negatives] == [2, 3, 4, 5, 6]
    assert [negative.score for negative in item.negatives] == [0.78, 0.62, 0.58, 0.55, 0.40]
    assert (item.removed["own_text"], item.removed["positives"]) == (1, 1)
    assert item.num_candidates == 7


def test_thresholds_then_range_among_the_kept():
    """<= .76 leaves .62 .58 .55 .40, of which [1, 3) is .58 .55."""
    item = only(mine(relative_margin=0.05, margin_against="max", range_min=1, range_max=3))
    assert numbers(item) == [3, 0]
    assert (item.removed["margin"], item.removed["range"]) == (1, 2)
    assert item.margin_from == 0.8


def test_range_among_the_retrieved():
    """Ranks 3 and 4 of the source's list, of which the margin leaves both; rank 2 is outside."""
    item = only(mine(relative_margin=0.05, margin_against="max", range_min=2, range_max=5, range_counts="retrieved"))
    assert numbers(item) == [2, 3]
    assert (item.removed["margin"], item.removed["range"]) == (1, 2)


def test_steps_count_what_they_see_in_their_order():
    """max .6 removes .78 .62; min .5 removes .40; the margin (.6 - .04 = .56) removes .58 of what is left."""
    item = only(mine(max_score=0.6, min_score=0.5, absolute_margin=0.04))
    assert numbers(item) == [0]
    assert [item.removed[step] for step in ("max_score", "min_score", "margin")] == [2, 1, 1]


def test_near_duplicates_are_counted_apart():
    data = data_of()
    data = MiningData(data.queries, data.ids, [*TEXTS[:4], "Clay ", *TEXTS[5:]], 8, data.numbers, 0)
    item = only(mine(data, near_duplicates=0.9, num_negatives=10))
    assert numbers(item) == [2, 3, 0, 5]
    assert item.removed["near_duplicates"] == 1


def test_reorder_ranks_by_the_other_scores_and_keeps_the_source_ranks():
    settings = MiningSettings(source="bm25", reorder=True, score_by="dense", range_max=2)
    candidates = exclude(settings, data_of(), 0, FOUND)
    reversed_scores = candidates.__class__(
        candidates.numbers,
        candidates.ranks,
        candidates.source_scores,
        -candidates.source_scores,
        candidates.positives,
        candidates.removed,
    )
    left = survive(settings, reversed_scores).candidates
    assert left.numbers.tolist() == [5, 0]
    assert left.ranks.tolist() == [6, 5]
    assert left.scores.tolist() == [-0.40, -0.55]


def test_clusters_come_with_labels_and_every_lambda_from_one_clustering():
    """Clusters of the survivors 4 2 3 0 5 are {4, 2, 0} and {3, 5}; a tiny λ takes the best of each."""
    mined = mine(sampling="cluster", num_clusters=2, lambdas=[1.0, 1e-9], num_negatives=2)
    assert list(mined) == ["-lambda1", "-lambda1e-09"]
    item = mined["-lambda1e-09"][0]
    assert numbers(item) == [4, 3]
    assert item.negatives[0].cluster != item.negatives[1].cluster


def test_softmax_at_a_low_temperature_is_top():
    assert numbers(only(mine(sampling="softmax", temperature=1e-3))) == [4, 2, 3]


def test_random_draws_depend_on_the_query_id_and_nothing_else():
    def drawn(identity):
        data = data_of()
        query = Query(identity, "query text", [1, 8], rows=1)
        return tuple(numbers(only(mine(MiningData([query], *_rest(data)), sampling="random", num_negatives=2))))

    sets = {drawn(f"q{n}") for n in range(60)}
    assert len(sets) == 10, "all pairs of five survivors, each by order"
    assert drawn("q7") == drawn("q7")


def _rest(data):
    return data.ids, data.texts, data.num_candidates, data.numbers, data.merged


SHORT = {"absolute_margin": 0.04}


class TestShort:
    """Three are wanted; <= .56 leaves .55 and .40."""

    def test_fewer_and_drop(self):
        assert numbers(only(mine(**SHORT))) == [0, 5]
        assert numbers(only(mine(**SHORT, on_short="drop"))) == []

    def test_relax_takes_the_next_by_order_in_the_range_and_marks_it(self):
        item = only(mine(**SHORT, on_short="relax"))
        assert [(n.number, n.mark) for n in item.negatives] == [(0, ""), (5, ""), (4, "relaxed")]
        item = only(mine(**SHORT, on_short="relax", range_min=3, range_counts="retrieved"))
        assert [(n.number, n.mark) for n in item.negatives] == [(0, ""), (5, ""), (2, "relaxed")]

    def test_fill_random_never_takes_a_positive_or_what_is_there(self):
        """Of eight candidates, 1 is a positive, 7 the query, 0 and 5 are there: 2 3 4 6 are left."""
        item = only(mine(**SHORT, on_short="fill_random", num_negatives=8))
        assert numbers(item)[:2] == [0, 5]
        assert sorted(numbers(item)[2:]) == [2, 3, 4, 6]
        assert {n.mark for n in item.negatives[2:]} == {"random"}
        assert {n.rank for n in item.negatives[2:]} == {None}

    def test_error_names_query_and_keys(self):
        with pytest.raises(TooFewError, match=r"query q1 has 2 of 3 negatives; widen mining\.top_k"):
            mine(**SHORT, on_short="error")


def test_max_uses_caps_a_text_over_queries():
    data = data_of()
    queries = [Query(f"q{n}", "query text", [1, 8], rows=1) for n in range(3)]
    data = MiningData(queries, data.ids, data.texts, 8, data.numbers, 0)
    settings = MiningSettings(num_negatives=2, max_uses=2)
    candidates = [exclude(settings, data, query, FOUND) for query in range(3)]
    mined = mine_all(settings, data, candidates, None, [FOUND] * 3, seed=3)[""]
    assert [numbers(item) for item in mined] == [[4, 2], [4, 2], [3, 0]]
    assert [item.removed["max_uses"] for item in mined] == [0, 0, 2]


def test_a_sampler_remembers_what_was_drawn_to_fill_up():
    settings = MiningSettings(num_negatives=4, max_uses=1, on_short="fill_random", absolute_margin=0.04)
    data = data_of()
    sampler = Sampler(settings, data, seed=1)
    survivors = survive(settings, exclude(settings, data, 0, FOUND))
    first = sampler.mine(0, survivors, None, 7)
    second = sampler.mine(0, survivors, None, 7)
    assert len(first.negatives) == 4
    assert not set(numbers(first)) & set(numbers(second))
    assert len(second.negatives) == 2, "six texts may be used, once each"
