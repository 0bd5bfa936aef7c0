"""The text store: every distinct text tokenised once, found again, and safe when several processes start at once."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rankpo.data.dataset import Pieces
from rankpo.data.table import open_table
from rankpo.types import Example

EXAMPLES = [
    Example("red", ("apple", "sky"), (1.0, 0.0), "a"),
    Example(
        "blue", ("sky", "apple", "apple pie"), (2.0, 0.0, 0.0), "b", confidence=0.75, relevant=(True, False, False)
    ),
    Example("red", ("apple pie", "sea"), (1.0, 0.0), "c"),
]


class Fixed:
    def __init__(self, examples, name="fixed"):
        self.name = name
        self._examples = examples

    def fingerprint(self):
        return "1"

    def examples(self):
        yield from self._examples


class Tokenizer:
    """Characters as tokens; counts its texts."""

    def __init__(self):
        self.seen = []

    def pieces(self, query_prefix="", candidate_prefix=""):
        return Pieces(self.tokenize, query_prefix, candidate_prefix, f"{query_prefix}|{candidate_prefix}")

    def tokenize(self, texts):
        self.seen.extend(texts)
        return [[ord(letter) for letter in text] for text in texts]


def text(table, row):
    return "".join(map(chr, table.tokens(int(row))))


def test_rows_give_back_the_texts_and_each_is_tokenised_once(tmp_path):
    tokenizer = Tokenizer()
    table = open_table(tmp_path, [Fixed(EXAMPLES)], tokenizer.pieces(), lambda message: None)
    assert sorted(tokenizer.seen) == sorted({"red", "blue", "apple", "sky", "apple pie", "sea"})
    for number, example in enumerate(EXAMPLES):
        assert text(table, table.query[number]) == example.query
        assert [text(table, row) for row in table.candidates[table.slots(number)]] == list(example.candidates)
        assert tuple(table.relevance[table.slots(number)]) == example.relevance
        assert table.id(number) == example.id
    assert table.query[0] == table.query[2]
    assert np.isnan(table.confidence[0]) and table.confidence[1] == 0.75


def test_a_second_opening_tokenises_nothing(tmp_path):
    open_table(tmp_path, [Fixed(EXAMPLES)], Tokenizer().pieces(), lambda message: None)
    again = Tokenizer()
    open_table(tmp_path, [Fixed(EXAMPLES)], again.pieces(), lambda message: None)
    assert again.seen == []


def test_prefixes_belong_to_the_role(tmp_path):
    tokenizer = Tokenizer()
    table = open_table(tmp_path, [Fixed(EXAMPLES)], tokenizer.pieces("q: ", "p: "), lambda message: None)
    assert text(table, table.query[1]) == "q: blue"
    assert text(table, table.candidates[0]) == "p: apple"


def test_known_positives_are_collected_over_all_examples_of_a_query(tmp_path):
    table = open_table(tmp_path, [Fixed(EXAMPLES)], Tokenizer().pieces(), lambda message: None)
    assert {text(table, row) for row in table.known_positives(int(table.query[0]))} == {"apple", "apple pie"}
    assert {text(table, row) for row in table.known_positives(int(table.query[1]))} == {"sky"}


def test_more_texts_than_one_call_takes(tmp_path):
    examples = [Example(f"q{n}", (f"d{n}", f"d{n + 1}"), (1.0, 0.0), str(n)) for n in range(3000)]
    tokenizer = Tokenizer()
    table = open_table(tmp_path, [Fixed(examples)], tokenizer.pieces(), lambda message: None)
    assert len(tokenizer.seen) == len(set(tokenizer.seen)) == 6001
    assert text(table, table.candidates[table.slots(2999)[1]]) == "d3000"


def test_a_failing_data_set_leaves_nothing_behind(tmp_path):
    def broken():
        yield EXAMPLES[0]
        raise ValueError("line 2 is bad")

    data = Fixed([])
    data.examples = broken
    with pytest.raises(ValueError, match="line 2 is bad"):
        open_table(tmp_path, [data], Tokenizer().pieces(), lambda message: None)
    assert [path for path in (tmp_path / "text_store").iterdir() if path.is_dir()] == []


PROGRAM = """
import sys, time
from tests.data.test_text_store import EXAMPLES, Fixed, Tokenizer
from rankpo.data.table import open_table
tokenizer = Tokenizer()
slow = tokenizer.pieces()
original = tokenizer.tokenize
object.__setattr__(slow, "tokenize", lambda texts: (time.sleep(0.5), original(texts))[1])
table = open_table(sys.argv[1], [Fixed(EXAMPLES)], slow, lambda message: None)
assert len(table) == 3
sys.stdout.write(str(len(tokenizer.seen)))
"""


def test_two_processes_at_once_build_one_store(tmp_path):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    running = [subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    counts = sorted(int(process.communicate(timeout=600)[0]) for process in running)
    assert counts == [0, 6]


def test_a_records_own_prompt(tmp_path):
    """In place of the model's prompt, or behind it as a part of the query; in front of the texts of symmetric data."""
    examples = [
        Example("q", ("a", "b"), (1.0, 0.0), "1"),
        Example("q", ("a", "b"), (1.0, 0.0), "2", query_prompt="P:"),
        Example("q", ("a", "b"), (1.0, 0.0), "3", query_prompt="P:", symmetric=True),
        Example("q", ("a", "b"), (1.0, 0.0), "4", symmetric=True),
        Example("q", ("a", "b"), (1.0, 0.0), "5", query_prompt=""),
    ]

    def shown(own_prompts, render=None):
        pieces = Pieces(Tokenizer().tokenize, "Q:", "D:", f"{own_prompts}{render}", render, own_prompts=own_prompts)
        table = open_table(tmp_path, [Fixed(examples)], pieces, lambda message: None)
        return [(text(table, table.query[e]), text(table, table.candidates[table.slots(e)[0]])) for e in range(5)]

    assert shown(True) == [("Q:q", "D:a"), ("P:q", "D:a"), ("P:q", "P:a"), ("Q:q", "Q:a"), ("q", "D:a")]
    assert shown(False)[:3] == [("Q:q", "D:a"), ("Q:P:q", "D:a"), ("Q:P:q", "Q:P:a")]
    assert [query for query, _ in shown(False, lambda example: (f"[{example.query}]", example.candidates))] == [
        "[q]", "[P:q]", "[P:q]", "[q]", "[q]"
    ]  # fmt: skip


class Words(Tokenizer):
    """Lower-case words as tokens: white space and case do not matter."""

    def tokenize(self, texts):
        self.seen.extend(texts)
        return [[sum(map(ord, word)) for word in text.lower().split()] for text in texts]


def test_texts_of_equal_tokens_are_one_row(tmp_path):
    """Two blanks or another case: the text is no negative of itself, in its own list or another query's."""
    examples = [
        Example("which  sea", ("Deep sea", "hill"), (1.0, 0.0), "a"),
        Example("Which sea", ("hill ", "deep  SEA"), (1.0, 0.0), "b"),
    ]
    table = open_table(tmp_path, [Fixed(examples)], Words().pieces(), lambda message: None)
    assert table.num_rows == 3 and table.query.tolist() == [0, 0] and table.candidates.tolist() == [1, 2, 2, 1]
    assert table.known_positives(0).tolist() == [1, 2]


@pytest.mark.parametrize("name", ["eos_token", "bos_token"])
def test_another_special_token_is_another_table(name):
    """The state of a fast tokenizer does not hold which of its tokens is eos: the fingerprint has to."""
    from rankpo.models.causal_lm.inputs import CompletionInputs
    from rankpo.models.causal_lm.settings import CausalSettings
    from rankpo.models.random_weights import byte_tokenizer

    prints = []
    for token in (None, "a"):
        tokenizer = byte_tokenizer()
        if token is not None:
            setattr(tokenizer, name, token)
        prints.append(CompletionInputs(tokenizer, CausalSettings()).pieces().fingerprint)
    assert prints[0] != prints[1]


def test_a_call_of_the_tokenizer_has_a_bounded_number_of_bytes(tmp_path, monkeypatch):
    tokenizer, calls = Tokenizer(), []
    encode = tokenizer.tokenize
    monkeypatch.setattr(tokenizer, "tokenize", lambda texts: calls.append(sum(map(len, texts))) or encode(texts))
    letters = tuple(chr(ord("a") + n) * 400_000 for n in range(9))
    table = open_table(
        tmp_path, [Fixed([Example("q", letters, (0.0,) * 9, "a")])], tokenizer.pieces(), lambda said: None
    )
    assert max(calls) <= 1 << 20 and len(calls) >= 4
    assert [text(table, row) for row in table.candidates] == list(letters)
