"""Training files as others read them, and read back by our own reader."""

import json
from dataclasses import replace

import numpy as np
import pytest

from rankpo.data.readers.records import Records
from rankpo.data.relevance import stated
from rankpo.mining.data import MiningData, Query
from rankpo.mining.output import write
from rankpo.mining.pipeline import Mined, Negative

DATA = MiningData(
    [Query("q1", "which sea", [1, 4]), Query("q2", "which coin", [2])],
    ["d0", "d1", "d2", "d3", "x4"],
    ["hills", "deep sea", "roman coin", "graphs", "wide sea"],
    4,
    {},
    0,
)
MINED = [
    Mined(
        0,
        (Negative(2, 1, 12.5, 0.4, cluster=3), Negative(0, None, np.nan, 0.123456789123, mark="random")),
        np.array([0.9, 0.8]),
        0.8,
        7,
        {"positives": 1},
    ),
    Mined(1, (), np.array([np.nan]), np.nan, 5, {}),
]


def written(tmp_path, form, keep_empty=True, num_negatives=2, mined=MINED):
    count = write(tmp_path / "out.jsonl", form, DATA, mined, num_negatives, keep_empty)
    return count, [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]


def test_contrastive_keeps_all_positives_and_is_read_back(tmp_path):
    count, records = written(tmp_path, "contrastive")
    assert count == 2
    assert records[0] == {
        "id": "q1",
        "query": "which sea",
        "positives": ["deep sea", "wide sea"],
        "negatives": ["roman coin", "hills"],
    }
    examples = list(Records(name="m", path=str(tmp_path / "out.jsonl")).examples())
    assert [(e.id, e.candidates, e.relevance) for e in examples] == [
        ("q1", ("deep sea", "wide sea", "roman coin", "hills"), (1.0, 1.0, 0.0, 0.0)),
        ("q2", ("roman coin",), (1.0,)),
    ]


def test_pos_neg_has_scores_where_all_are_known(tmp_path):
    _, records = written(tmp_path, "pos_neg")
    assert records[0]["pos_scores"] == [0.9, 0.8]
    assert records[0]["neg_scores"] == [0.4, 0.123456789], "nine significant digits"
    assert "pos_scores" not in records[1]
    teacher = list(Records(name="m", path=str(tmp_path / "out.jsonl"), scores_are="teacher").examples())
    assert teacher[0].teacher == (0.9, 0.8, 0.4, 0.123456789)


def test_tuples_and_lists(tmp_path):
    _, records = written(tmp_path, "triplet")
    assert [tuple(record.values()) for record in records] == [
        ("which sea", "deep sea", "roman coin"),
        ("which sea", "deep sea", "hills"),
        ("which sea", "wide sea", "roman coin"),
        ("which sea", "wide sea", "hills"),
    ]
    assert list(records[0]) == ["anchor", "positive", "negative"]
    count, records = written(tmp_path, "n_tuple")
    assert count == 1, "a query with fewer has not all the columns"
    assert list(records[1]) == ["anchor", "positive", "negative_1", "negative_2"]
    assert records[1]["negative_2"] == "hills"
    _, records = written(tmp_path, "labeled_list")
    assert records[0]["documents"] == ["deep sea", "wide sea", "roman coin", "hills"]
    assert records[0]["labels"] == [1, 1, 0, 0]
    _, records = written(tmp_path, "ids")
    assert records[0] == {
        "query_id": "q1",
        "query_text": "which sea",
        "positive_document_ids": ["d1", "x4"],
        "negative_document_ids": ["d2", "d0"],
    }


def test_queries_without_negatives_are_left_out_when_dropped(tmp_path):
    count, records = written(tmp_path, "contrastive", keep_empty=False)
    assert (count, [record["id"] for record in records]) == (1, ["q1"])


def test_the_meta_file_says_where_each_negative_comes_from(tmp_path):
    written(tmp_path, "contrastive")
    first, second = (json.loads(line) for line in (tmp_path / "out.meta.jsonl").read_text().splitlines())
    assert first["negatives"] == [
        {"id": "d2", "rank": 1, "source_score": 12.5, "score": 0.4, "cluster": 3, "mark": None},
        {"id": "d0", "rank": None, "source_score": None, "score": 0.123456789, "cluster": None, "mark": "random"},
    ]
    assert first["positives"] == [{"id": "d1", "score": 0.9}, {"id": "x4", "score": 0.8}]
    assert (first["margin_from"], first["candidates"], first["removed"]) == (0.8, 7, {"positives": 1})
    assert (second["margin_from"], second["positives"][0]["score"]) == (None, None)


def test_a_failed_writing_leaves_the_earlier_file(tmp_path):
    (tmp_path / "out.jsonl").write_text("earlier\n")
    broken = [*MINED, Mined(9, (), np.empty(0), 0.0, 0, {})]
    with pytest.raises(IndexError):
        write(tmp_path / "out.jsonl", "contrastive", DATA, broken, 2, True)
    assert (tmp_path / "out.jsonl").read_text() == "earlier\n"


ALL = ("contrastive", "pos_neg", "triplet", "n_tuple", "labeled_list", "ids")
SCORED_ABOVE = Mined(  # its mined negatives have higher scores than its positives
    0, (Negative(2, 1, 0.99, 0.99), Negative(0, 2, 0.95, 0.95)), np.array([0.9, 0.8]), 0.8, 7, {}
)


@pytest.mark.parametrize("prompt", [None, "Find: "])
@pytest.mark.parametrize("form", ALL)
def test_every_form_is_read_back_right_without_a_field_map(tmp_path, form, prompt):
    """Positives are positives and negatives negatives, whatever the scores; a prompt of the records stays."""
    data = replace(DATA, queries=[Query("q1", "which sea", [1, 4], prompt=prompt), DATA.queries[1]])
    write(tmp_path / "mined.jsonl", form, data, [SCORED_ABOVE], 2, keep_empty=True)
    records = Records(name="m", path=str(tmp_path / "mined.jsonl"))
    sides = {True: set(), False: set()}
    for example in records.examples():
        assert (example.query, example.query_prompt) == ("which sea", prompt)
        for text, relevant in zip(example.candidates, stated(example), strict=True):
            sides[relevant].add(text)
    assert sides == {True: {"deep sea", "wide sea"}, False: {"roman coin", "hills"}}
    assert not records.report.unused
    (first, *_) = records.examples()
    assert first.id == "q1" or form in ("triplet", "n_tuple", "labeled_list")


@pytest.mark.parametrize("form", ALL)
def test_the_folder_of_a_run_is_read_too(tmp_path, form):
    """The meta file, statistics and corpus beside the records are none."""
    write(tmp_path / "mined.jsonl", form, DATA, [SCORED_ABOVE], 2, keep_empty=True)
    (tmp_path / "statistics.json").write_text("{}")
    assert list(Records(name="m", path=str(tmp_path)).examples())
