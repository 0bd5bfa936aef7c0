"""task=inspect: what it says of files, in the run folder and on the console."""

from __future__ import annotations

import json

import pytest

from rankpo.cli import commands
from rankpo.errors import ConfigError
from tests.runs import train

ROWS = [
    {"query": "which sea", "pos": ["the deep sea"], "neg": ["a hill", "a roman coin"], "session": 1},
    {"query": "which sea", "pos": ["the deep sea"], "neg": ["a hill", "a roman coin"], "ts": "x"},
    {"query": "which coin is old", "pos": ["a roman coin", "a  roman coin"], "neg": ["a hill"]},
    {"query": "", "pos": ["a"]},
    {"query": "q", "pos": [""]},
    {"query": "r", "pos": ["b", "c", ""]},
    "*",
]


def inspected(tmp_path, rows, *overrides, name="data.jsonl"):
    path = tmp_path / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    options = ("task=inspect", "datasets=[jsonl]", f"datasets.jsonl.path={path}", "exp_name=i")
    train(*options, f"cache_dir={tmp_path / 'cache'}", *overrides)
    return json.loads((tmp_path / "cache" / "i" / "inspect.json").read_text())


def test_good_and_bad_records_with_reasons(tmp_path, capsys):
    report = inspected(tmp_path, ROWS)
    read, holds = (report["datasets"]["jsonl"][part] for part in ("read", "holds"))
    assert (read["layout"], read["good_records"], read["bad_records"]) == (["pos_neg"], 3, 4)
    assert {(item["reason"], item["records"], item["first"]) for item in read["bad"]} == {
        ("query is empty", 1, "data.jsonl:4"),
        ("pos[…] is empty", 2, "data.jsonl:5"),
        ("not JSON: unexpected character, expected a JSON value: line 1 column 1 (char 0)", 1, "data.jsonl:7"),
    }
    assert read["unused_fields"] == ["session", "ts"] and read["equal_candidates_merged"] == 1
    assert holds["positives_per_query"]["max"] == 1 and holds["negatives_per_query"] == {
        "p5": 1,
        "p50": 2,
        "p95": 2,
        "max": 2,
    }
    assert (holds["queries_in_several_examples"], holds["repeated_examples"]) == (1, 1)
    assert holds["lengths"]["unit"] == "words" and holds["lengths"]["query"]["max"] == 4
    assert report["training"]["items"] == 3 and "refused" not in report["training"]
    shown = report["datasets"]["jsonl"]["first_example"]
    assert shown["source"] == "data.jsonl:1" and shown["candidates"][0]["relevant"] is True
    said = capsys.readouterr()
    for line in ("jsonl: 2 bad: pos[…] is empty (first: data.jsonl:5)", "jsonl: 2 fields are not used: session, ts",
                 "jsonl: 1 examples repeat an earlier one", "ContrastiveLoss would train on 3 items an epoch"):  # fmt: skip
        assert line in said.out + said.err


def test_what_a_loss_would_make_of_it(tmp_path):
    graded = [{"query": "q", "hits": [{"content": "a", "label": 3}, {"content": "b", "label": 1}]}]
    report = inspected(tmp_path, graded)
    assert report["training"]["refused"].startswith("datasets.jsonl.relevant_from is not set")
    assert report["datasets"]["jsonl"]["holds"]["unknown_per_query"] == 1
    assert report["datasets"]["jsonl"]["read"]["labels"] == [1, 3]
    report = inspected(tmp_path, graded, "datasets.jsonl.relevant_from=2")
    assert report["training"]["items"] == 1
    report = inspected(tmp_path, graded, "loss=listnet")
    assert "refused" not in report["training"]
    alone = [{"query": f"q{n}", "positives": ["a"]} for n in range(3)]
    assert (
        "no list has a training signal for ListNetLoss"
        in inspected(tmp_path, alone, "loss=listnet")["training"]["refused"]
    )


def test_ranked_lists_name_their_layout_and_bad_records(tmp_path):
    rows = [{"query": "q", "passages": ["a", "b", "c"], "ranking": order} for order in ([2, 0, 1], [1, 0], [3])]
    (tmp_path / "lists.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = commands.translated(["data", str(tmp_path / "lists.jsonl")])
    train(*keys, f"cache_dir={tmp_path / 'cache'}")
    report = json.loads((tmp_path / "cache" / "data" / "inspect.json").read_text())
    read = report["datasets"]["ranked_lists"]["read"]
    assert (read["layout"], read["good_records"], read["bad_records"]) == (["ranking"], 2, 1)
    assert read["bad"][0]["reason"] == "ranking has position 3; allowed: 0 to 2"
    assert read["bad"][0]["first"] == "lists.jsonl:3"
    assert (report["training"]["loss"], report["training"]["items"]) == ("PlackettLuceLoss", 2)


def test_columns_that_are_read_in_their_order_are_named(tmp_path):
    report = inspected(tmp_path, [{"question": "q", "answer": "a", "url": "u"}])
    read = report["datasets"]["jsonl"]["read"]
    assert read["layout"] == ["ordered"] and read["unused_fields"] == ["url"]
    assert read["columns_in_order"] == ["question (anchor)", "answer (positive)"]


def test_lengths_in_tokens_of_a_model(tmp_path):
    report = inspected(tmp_path, ROWS[:1], "task.tokens=true", "model=tiny_bert")
    lengths = report["datasets"]["jsonl"]["holds"]["lengths"]
    assert lengths["unit"] == "tokens" and lengths["query"]["max"] > 2


def test_scripts_without_blanks_have_a_word_a_letter(tmp_path):
    report = inspected(tmp_path, [{"query": "鹦鹉吃鱼 well", "positives": ["a"], "negatives": ["b"]}])
    assert report["datasets"]["jsonl"]["holds"]["lengths"]["query"]["max"] == 5


def test_a_file_without_a_good_record_says_why(tmp_path):
    with pytest.raises(ConfigError, match=r"2 bad: query is empty \(first: data\.jsonl:1\)"):
        inspected(tmp_path, [{"query": "", "pos": ["a"], "neg": []}] * 2)
    with pytest.raises(ConfigError, match="no format has these keys"):
        inspected(tmp_path, [{"a": 1}])
