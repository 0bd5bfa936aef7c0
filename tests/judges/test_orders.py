"""Orders of lists: what is read from answers, what is refused, two answers combined, and which lists are drawn."""

from __future__ import annotations

import pytest

from rankpo.judges.lists import ListSettings, draw_lists
from rankpo.judges.orders import combine_orders, order_words, parse_order
from rankpo.judges.templates import ListTemplate
from rankpo.judges.verdicts import Unparsable, Unreadable


@pytest.mark.parametrize(
    "answer",
    [
        "Ranking: C > A > B",
        "A > B > C is tempting, and A > B too.\n\n**Ranking:** [C] > [A] > [B]",
        "Ranking: A > B > C\nWait.\nFinal ranking: c > a > b.",
        "<think>Ranking: A > B > C</think>\nC>A>B",
        '```json\n{"comparison": "A is a fine one", "ranking": ["C", "A", "B"]}\n```',
        '{"ranking": "C > A > B"}',
    ],
)
def test_orders_that_are_read(answer):
    assert parse_order(answer, 3) == (2, 0, 1)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("I would rather not say.", "no order of 3 passages"),
        ("Ranking: C > A", r"no order of 3 passages \(missing 1\)"),
        ("Ranking: C > A > A > B", r"\(duplicate 1\)"),
        ("Ranking: C > A > D > B", r"\(out of range 1\)"),
        ("Ranking: C > A = B", r"no order of 3 passages \(missing 1\)"),
        ('{"ranking": [2, 0, 1]}', "ranking must be a list of letters"),
        ("<think>C > A > B", "the thinking block does not end"),
    ],
)
def test_answers_without_one_order_of_all_are_refused(answer, message):
    with pytest.raises(Unparsable, match=message):
        parse_order(answer, 3)


def test_an_answer_without_an_end_is_not_stored():
    with pytest.raises(Unreadable):
        parse_order("x" * 60_000, 3)


def test_a_computed_order_is_read_back():
    assert order_words((2, 0, 1)) == "Ranking: C > A > B"
    for count in (2, 26):
        places = tuple(reversed(range(count)))
        assert parse_order(order_words(places), count) == places


def test_two_answers_by_hand():
    """Ranks 0 1 2 3 and 1 0 3 2 sum to 1 1 5 5: the first answer decides; 4 of 6 pairs are alike."""
    order = combine_orders([0, 1, 2, 3], [1, 0, 3, 2])
    assert order.ranking == (0, 1, 2, 3) and order.agreement == pytest.approx(4 / 6)
    order = combine_orders([0, 1, 2, 3], [3, 1, 0, 2])  # sums 0+2, 1+1, 2+3, 3+0
    assert order.ranking == (0, 1, 3, 2) and order.agreement == pytest.approx(2 / 6)
    assert combine_orders(None, [1, 0]).ranking == (1, 0) and combine_orders([1, 0], None).agreement is None
    assert combine_orders([1, 0], [0, 1]).agreement == 0


TEXTS = {f"p{n}": f"text {n % 9}" for n in range(12)}  # p9, p10 and p11 repeat p0, p1 and p2


def drawn(seed=1, query="q", **keys):
    settings = ListSettings(**{"size": 4, "per_query": 2, **keys})
    return draw_lists(settings, query, list(TEXTS), TEXTS, seed, str.encode)


def test_lists_share_no_passage_and_hold_no_text_twice():
    lists = drawn(per_query=9)
    assert [len(short.ids) for short in lists] == [4, 4]  # of nine texts; a list of one passage is none
    names = [name for short in lists for name in short.ids]
    assert len(set(names)) == 8 and set(names) <= {f"p{n}" for n in range(9)}
    assert [list(TEXTS).index(name) + 1 for name in lists[0].ids] == list(lists[0].ranks)
    assert len(drawn(per_query=1)) == 1 and drawn() == drawn()
    assert drawn(seed=2) != drawn() and drawn(query="r") != drawn()
    assert {name for short in drawn(top_k=3) for name in short.ids} == {"p0", "p1", "p2"}
    assert len(lists[0].pairs()) == 6 and (lists[0].pairs()[0].id1, lists[0].pairs()[0].rank2) == (
        lists[0].ids[0],
        lists[0].ranks[1],
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"size": 1}, "size must be in 2 to 26, got 1"),
        ({"size": 27}, "size must be in 2 to 26, got 27"),
        ({"top_k": 1}, "top_k must be >= 2, got 1"),
        ({"per_query": 0}, "per_query must be >= 1, got 0"),
    ],
)
def test_settings_that_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        ListSettings(**keys)


def test_a_template_for_lists_is_filled_in_one_pass():
    template = ListTemplate(prompt="{criteria} {query} {num} {example}\n{passages}{mark}", passage="{label}: {text}\n")
    (turn,) = template.messages("{text} of {num}?", ["{query}", "b" * 3])
    mark = turn["content"][-16:]
    assert turn["content"] == f" {{text}} of {{num}}? 2 B > A\nA: {{query}}\nB: bbb\n{mark}"
    assert not template.is_marked
    with pytest.raises(ValueError, match=r"passage must hold \{label\}"):
        ListTemplate(prompt="{query}{passages}", passage="{text}")
    with pytest.raises(ValueError, match=r"prompt must hold \{passages\}"):
        ListTemplate(prompt="{query}", passage="{label}{text}")
