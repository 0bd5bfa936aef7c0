"""Tests of the parser of written rankings: valid answers, and texts that it must reject."""

from __future__ import annotations

import pytest

from rankpo.data.text.identifiers import Identifiers
from rankpo.data.text.list_conversations import written
from rankpo.data.text.permutations import Permutation, parse, tally

NUMBERS, LETTERS = written("numbers", 5), written("letters", 3)


def numbers(order, status, **repairs):
    return [place - 1 for place in order], status, repairs


TABLE = [
    ("[2] > [1] > [3] > [5] > [4]", numbers([2, 1, 3, 5, 4], "ok")),
    ("[2], [1], [3], [5], [4]", numbers([2, 1, 3, 5, 4], "ok")),
    ("<think>[5] > [4]</think>[2] > [1] > [3] > [5] > [4]", numbers([2, 1, 3, 5, 4], "ok")),
    ("I am sure. <answer>[1] > [2]</answer> no: <answer>[2] > [1] > [3] > [5] > [4]</answer>", numbers([2, 1, 3, 5, 4], "ok")),
    ("[3] > [3] > [9] > [1]", numbers([3, 1, 2, 4, 5], "repaired", duplicate=1, out_of_range=1, missing=3)),
    ("[2]>[1]", numbers([2, 1, 3, 4, 5], "repaired", missing=3)),
    ("[２] > [1]", numbers([2, 1, 3, 4, 5], "repaired", missing=3)),
    ("[10] > [02]", numbers([2, 1, 3, 4, 5], "repaired", out_of_range=1, missing=4)),
    ("2 > 1 > 3 > 4 > 5", numbers([2, 1, 3, 4, 5], "repaired", format=1)),
    ("[2, 1, 3, 4, 5]", numbers([2, 1, 3, 4, 5], "repaired", format=1)),
    ("As [1] says, unlike [3]: [3] > [1] > [2]", numbers([3, 1, 2, 4, 5], "repaired", missing=2)),
    ("[1] > [2], or rather [2] > [1]", numbers([2, 1, 3, 4, 5], "repaired", missing=3)),
    ("<think>[5] > [4]", numbers([1, 2, 3, 4, 5], "failed")),
    ("", numbers([1, 2, 3, 4, 5], "failed")),
    ("I am sorry, I cannot rank these.", numbers([1, 2, 3, 4, 5], "failed")),
    ("429, retry in 5 seconds, limit 20", numbers([1, 2, 3, 4, 5], "failed")),
    ("[17] > [18]", numbers([1, 2, 3, 4, 5], "failed")),
    ("[true, 2]", numbers([1, 2, 3, 4, 5], "failed")),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "expected"), TABLE)
def test_numbers(answer, expected):
    found = parse(answer, 5, NUMBERS)
    assert (list(found.order), found.status, dict(found.repairs)) == expected


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ("9" * 5000, "failed"),
        ("[" + "9" * 5000 + ", 1]", "failed"),
        ("[" * 100_000, "failed"),
        ("[" + "9" * 5000 + "] > [2]", "repaired"),
        ('["\U00010a40", 2]', "repaired"),  # a digit that is no decimal
    ],
    ids=["digits", "a list of digits", "brackets", "a label of digits", "another digit"],
)
def test_hostile_answers(answer, status):
    assert parse(answer, 5, NUMBERS).status == status


@pytest.mark.parametrize(
    ("answer", "order", "status", "repairs"),
    [
        ("[B] > [A]", "BAC", "repaired", {"missing": 1}),
        ("[b] > [a]", "BAC", "repaired", {"missing": 1}),
        ("I think [B] > [A]", "BAC", "repaired", {"missing": 1}),
        ("BA", "ABC", "failed", {}),
        ("[AB]", "ABC", "failed", {}),
        ("[C] > [B] > [A]\n[C] > [B]", "CBA", "ok", {}),
    ],
)
def test_letters(answer, order, status, repairs):
    found = parse(answer, 3, LETTERS)
    assert ("".join("ABC"[place] for place in found.order), found.status, dict(found.repairs)) == (
        order,
        status,
        repairs,
    )


def test_bare_letters_are_read_from_a_run_only():
    """'A' is a word: in prose it is no identifier."""
    bare = Identifiers("bare_letters", ("A", "B", "C"), "", "", " > ", (), (), (), (), (), True)
    assert parse("C > A > B", 3, bare).order == (2, 0, 1)
    assert parse("The order is C > A > B", 3, bare).status == "ok"
    assert parse("A passage that I like is C", 3, bare).status == "failed"


def test_the_prompt_may_have_opened_the_thinking():
    assert parse("[2] > [1]", 2, written("numbers", 2), thinking=True).reason == "unfinished reasoning"
    assert parse("first [1]</think>[2] > [1]", 2, written("numbers", 2), thinking=True).order == (1, 0)


def test_an_answer_pattern_replaces_the_brackets():
    found = parse("doc-2, doc-1", 2, written("numbers", 2), answer_pattern=r"doc-(\d+)")
    assert found.order == (1, 0) and found.status == "ok"


def test_window_of_three_knows_no_fourth():
    found = parse("[4] > [2]", 3, NUMBERS)
    assert found.order == (1, 0, 2) and found.repairs == {"out_of_range": 1, "missing": 2}


def test_tally():
    found = [Permutation((0,), status) for status in ("ok", "failed", "ok")]
    assert tally(found) == {"ok": 2, "repaired": 0, "failed": 1}
