"""Which pairs are drawn, and the template that shows them."""

from __future__ import annotations

import pytest

from rankpo.judges.annotation import equal_texts
from rankpo.judges.costs import cost
from rankpo.judges.grades import EqualGrades, equal_grades
from rankpo.judges.pairs import STRATEGIES, Pair, PairSettings, draw, in_rounds
from rankpo.judges.report import report, wilson
from rankpo.judges.templates import Template
from rankpo.retrieval.corpus import text_key
from rankpo.types import Example

IDS = [f"d{number}" for number in range(30)]
SCORES = [1 / (number + 1) for number in range(30)]


def score_gap(rank1: int, rank2: int) -> float:
    return abs(SCORES[rank1 - 1] - SCORES[rank2 - 1])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_pairs_follow_their_strategy_and_the_seed_alone(strategy):
    settings = PairSettings(strategy=strategy, per_query=8, top_k=20, gap_min=3, gap_max=5)
    pairs = draw(settings, "q", IDS, SCORES, seed=1)
    assert pairs == draw(settings, "q", IDS, SCORES, seed=1) != draw(settings, "other", IDS, SCORES, seed=1)
    assert len({frozenset((pair.id1, pair.id2)) for pair in pairs}) == 8
    gaps = [abs(pair.rank1 - pair.rank2) for pair in pairs]
    assert max(pair.rank1 for pair in pairs) <= 20
    assert IDS[pairs[0].rank1 - 1] == pairs[0].id1
    smallest = sorted(score_gap(a, b) for a in range(1, 21) for b in range(a + 1, 21))
    expected = {
        "adjacent": set(gaps) == {1},
        "gap": set(gaps) <= {3, 4, 5},
        "top_vs_rest": all(1 in (pair.rank1, pair.rank2) for pair in pairs),
        "uncertain": pytest.approx(sorted(score_gap(a.rank1, a.rank2) for a in pairs)) == smallest[:8],
        "uniform": max(gaps) > 5,
    }
    assert expected[strategy]


def test_the_better_ranked_stands_on_either_side():
    firsts = [draw(PairSettings(), f"q{number}", IDS, SCORES, 1)[0] for number in range(200)]
    share = sum(pair.rank1 < pair.rank2 for pair in firsts) / 200
    assert 0.4 < share < 0.6


def test_equal_texts_are_not_asked_about():
    texts = {"a": "same  text", "b": "other", "c": "same text"}
    equal = equal_texts(texts, list(texts), text_key)
    assert equal == {("a", "c")}
    drawn = draw(PairSettings(per_query=9), "q", list(texts), [3, 2, 1], 1, equal)
    assert {frozenset((pair.id1, pair.id2)) for pair in drawn} == {frozenset("ab"), frozenset("bc")}


def test_template_is_filled_in_one_pass_and_cuts_both_sides_alike():
    template = Template(prompt="{query}|{passage_a}|{passage_b}|{x}", max_characters=10)
    (turn,) = template.messages("{passage_a}", "0123456789abc", "b")
    assert turn["content"] == "{passage_a […]|0123456789 […]|b|{x}"
    with pytest.raises(ValueError, match="passage_b"):
        Template(prompt="{query} {passage_a}")


def test_cost_by_hand():
    tokens = {"prompt_tokens": 1_000_000, "cached_tokens": 400_000, "completion_tokens": 100_000}
    assert cost(tokens, {"input": 1.0, "cached_input": 0.1, "output": 4.0}) == pytest.approx(0.6 + 0.04 + 0.4)
    assert cost(tokens, {"input": 1.0, "output": 4.0}) == pytest.approx(1.4)


def test_report_of_the_real_sample(shared_data):
    """The shares by hand: 39 of 60 first, 30 of 60 as ranked, by gap 2/5, 7/14, 9/16, 12/25."""
    import json

    records = [json.loads(line) for line in (shared_data / "rankpo" / "preferences.jsonl").read_text().splitlines()]
    shown = [{**r, "agree": True, "order": "given", "calls": [{"preferred": r["preferred"]}]} for r in records]
    found = report(shown)
    assert found["first_shown_preferred"]["count"] == 39
    assert found["first_shown_preferred"]["p_value"] == pytest.approx(0.027, abs=5e-4)
    assert found["agrees_with_ranking"]["count"] == 30
    by_gap = [(value["count"], value["of"]) for value in found["agrees_with_ranking_by_gap"].values()]
    assert by_gap == [(2, 5), (7, 14), (9, 16), (12, 25)]
    assert found["longer_passage_preferred"]["count"] == 28


def test_wilson_by_hand():
    low, high = wilson(5, 10)  # center .5, half width z·sqrt(p(1-p)/n + z²/4n²)/(1 + z²/n), z = 1.959964
    assert (low, high) == (pytest.approx(0.236593, abs=1e-6), pytest.approx(0.763407, abs=1e-6))


def test_rounds_reach_every_query_before_the_second_pair_of_any():
    drawn = {name: draw(PairSettings(per_query=count), name, IDS, SCORES, 1) for name, count in (("a", 1), ("b", 3))}
    ordered = in_rounds([drawn["a"], [], drawn["b"]])
    assert ordered == [drawn["a"][0], *drawn["b"]]
    assert [pair.query_id for pair in in_rounds([drawn["b"], drawn["a"]])] == ["b", "a", "b", "b"]
    assert in_rounds([]) == []


class World:
    """Examples by text, and judgements by id."""

    name, ignore_identical_ids, relevant_from, gain = "world", False, 1, "exp"

    def fingerprint(self):
        return "world"

    def examples(self):
        yield Example("Q  two", ("a", "b", "c"), (2.0, 1.0, 1.0), "x")

    def corpus(self):
        return iter(())

    queries = corpus

    def qrels(self):
        return {"q1": {"d0": 2, "d1": 2, "d2": 1}}


def test_share_of_equal_grades_where_grades_are_known():
    """q1 has judgements, in which d3 and d4 are 0; q2 is known by its text, and of its passages c is; q3 is unknown."""
    pairs = [Pair("q1", f"d{a}", f"d{b}", 1, 2) for a, b in ((0, 1), (0, 2), (3, 4), (2, 3))]
    pairs += [Pair("q2", "d0", "d1", 1, 2), Pair("q2", "d1", "d2", 1, 2), Pair("q2", "d1", "d3", 1, 2)]
    pairs += [Pair("q3", "d0", "d1", 1, 2)]
    texts = {"d0": "a", "d1": "b", "d2": "c", "d3": "z", "d4": "y"}
    found = equal_grades(pairs, {"q1": "one", "q2": "Q two", "q3": "three"}, texts, [World()])
    assert (found.count, found.known) == (3, 6) and found.share == 0.5
    assert EqualGrades(0, 0).share is None
