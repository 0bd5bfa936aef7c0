"""A teacher's scores of the datasets' candidates, written and read back with defaults."""

from __future__ import annotations

import json

import pytest

from rankpo.data.readers.records import Records
from rankpo.data.relevance import stated
from rankpo.judges.scores import ScoresJudge
from rankpo.judges.teaching import teach
from rankpo.types import Example

SCORES = {"a": -2.0, "b": 3.0, "c": 0.5}  # the teacher does not agree with the lists


class Letters(ScoresJudge):
    def score(self, query, passages):
        return [SCORES[passage] for passage in passages]


def taught(tmp_path, examples):
    judge = Letters(path=str(tmp_path))
    teach(judge, examples, tmp_path, None, lambda line: None)
    return Records(name="t", path=str(tmp_path / "teacher.jsonl"))


def test_lists_are_read_back_as_they_were(tmp_path):
    given = Example("q", ("a", "b", "c"), (1.0, 0.0, 0.0), "x", query_prompt="P: ")
    records = taught(tmp_path, [given])
    (example,) = records.examples()
    assert records.report.formats == ["pos_neg"] and not records.report.unused
    assert (example.id, example.query_prompt, stated(example)) == ("x", "P: ", (True, False, False))
    assert dict(zip(example.candidates, example.teacher, strict=True)) == SCORES


def test_labels_keep_their_values_beside_the_teachers_scores(tmp_path):
    """Labels that do not say what is relevant are not turned into positives by being above 0."""
    records = taught(tmp_path, [Example("q", ("a", "b", "c"), (3.0, 1.0, 2.0), "x"),
                                Example("r", ("a", "b"), (1.0, 0.0), "y")])  # fmt: skip
    first, second = records.examples()
    assert records.report.formats == ["grouped"] and not records.report.unused
    assert (first.relevance, first.teacher, stated(first)) == ((3.0, 1.0, 2.0), (-2.0, 3.0, 0.5), None)
    assert second.teacher == (-2.0, 3.0)


def test_a_file_of_the_earlier_form_is_continued(tmp_path):
    """Scores that are on the disk are not asked for again."""
    taught(tmp_path, [Example("q", ("a", "b"), (1.0, 0.0), "x")])
    (line,) = (tmp_path / "scores.jsonl").read_text().splitlines()
    assert json.loads(line) == {"key": "0:x", "scores": [-2.0, 3.0]}
    judge = Letters(path=str(tmp_path))
    judge.score = lambda query, passages: pytest.fail("asked again")
    teach(judge, [Example("q", ("a", "b"), (1.0, 0.0), "x")], tmp_path, None, lambda line: None)
