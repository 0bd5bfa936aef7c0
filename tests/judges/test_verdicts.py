"""A judge's words: real answers, strange ones, and what two orders say together."""

from __future__ import annotations

import json

import pytest

from rankpo.judges.verdicts import Unparsable, Verdict, combine, parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Comparison: …\n\nPreferred: B\nConfidence score: 85", Verdict("B", 85)),
        ("**Preferred:** A  \n**Confidence score:** 90%", Verdict("A", 90)),
        ("preferred: candidate b", Verdict("B")),
        ("Preferred: 'A'. It names the field, and B does not.", Verdict("A")),
        ("The form is 'Preferred: A'.\nPreferred: B confidence score: 70", Verdict("B", 70)),
        ("<think>Preferred: A</think>\nPreferred: Passage B\nConfidence: 60", Verdict("B", 60)),
        ('{"comparison": "x", "preferred": "A", "confidence_score": 75}', Verdict("A", 75)),
        ('```json\n{"preferred": "B"}\n```', Verdict("B")),
        ('{"Preferred": "b", "Confidence_Score": "80%"}', Verdict("B", 80)),
        ('Here it is: {"preferred": "A", "confidence_score": 90} I hope it helps.', Verdict("A", 90)),
        ("Preferred: A\nConfidence score (0-100): 85", Verdict("A", 85)),
        ("Preferred: A\nConfidence (from 0 to 10): 8.5", Verdict("A", 85)),
        ("Preferred: A\nConfidence level: 95 (on a scale of 0-100)", Verdict("A", 95)),
        ("Preferred: A\nConfidence - 77", Verdict("A", 77)),
        ("Preferred: A\nConfidence: 9/10", Verdict("A", 90)),
        ("Preferred: A\nConfidence: 4 out of 5", Verdict("A", 80)),
        ("Preferred: A\nConfidence: ٩٠", Verdict("A", 90)),
        ("Preferred: A\nConfidence: 0.75", Verdict("A", 75)),
        ("Preferred: A\nConfidence: 1", Verdict("A", 1)),
        ('{"preferred": "A", "confidence_score": 1.0}', Verdict("A", 100)),
        ("Preferred: A\nConfidence: high, since two of the texts say so", Verdict("A")),
    ],
)
def test_words_that_name_one(text, expected):
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I cannot compare them.",
        "Preferred: A or B",
        "Preferred: A/B",
        "Preferred: tie",
        "Preferred: a strong background decides",
        "Preferred:",
        "<think>Preferred: A",
        '{"preferred": "C"}',
        '{"preferred": "A", "confidence_score": "high"}',
        "Preferred: A\nConfidence score: 900",
        "Preferred: A\nConfidence: -5",
        "Preferred: A\nConfidence: 12/10",
        '{"preferred": "A", "confidence_score": NaN}',
        'First {"preferred": "A"}, but then {"preferred": "B"}',
    ],
)
def test_words_that_name_none_are_not_guessed(text):
    with pytest.raises(Unparsable):
        parse(text)


def test_real_answers_parse_to_their_stored_values(shared_data):
    lines = (shared_data / "rankpo" / "preferences.jsonl").read_text().splitlines()
    for line in lines:
        record = json.loads(line)
        assert parse(record["response"]) == Verdict(record["preferred"], record["confidence_score"])
    assert len(lines) == 60


def test_two_orders_by_hand():
    agreed = combine(Verdict("A", 90), Verdict("B", 80))  # swapped, B is passage 1: .9 and .8
    assert (agreed.p, agreed.preferred, agreed.confidence, agreed.agree) == (pytest.approx(0.85), "A", 85, True)
    split = combine(Verdict("A", 90), Verdict("A", 70))  # the second call chose passage 2: .9 and 1 - .7
    assert (split.p, split.preferred, split.agree) == (pytest.approx(0.6), "A", False)


def test_confidences_below_half_and_missing_ones():
    assert combine(Verdict("B", 30), None).p == 0.5  # clipped: a choice is never worth less than chance
    assert combine(Verdict("B"), None).confidence is None
    assert combine(None, Verdict("A", 80)).preferred == "B"
