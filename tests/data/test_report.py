"""The data report against small data counted by hand."""

import json

import numpy as np
import pytest

from rankpo.data.readers.records import Records
from rankpo.data.report import all_pairs, data_report, histogram, lines, quantiles, write_report
from rankpo.data.table import open_table
from rankpo.types import Example
from tests.data.test_text_store import Fixed, Tokenizer
from tests.runs import CONTRASTIVE, train

LISTS = [
    Example("red", ("apple", "sky", "sea"), (2.0, 0.0, 0.0), "a", relevant=(True, False, False)),
    Example("blue", ("sky", "apple"), (1.0, 0.0), "b"),
    Example("red", ("sky", "plum"), (1.0, 0.0), "c"),  # sky was not relevant to red in a
    Example("red", ("plum",), (0.0,), "d"),
]
PAIRS = [
    Example("q", ("x", "y"), (1.0, 0.0), "a", confidence=0.9),
    Example("q", ("x", "y"), (0.0, 1.0), "b", confidence=0.6),  # y over x, and x over y above
    Example("q", ("x", "z"), (1.0, 0.0), "c", confidence=0.9),
    Example("r", ("y", "x"), (1.0, 0.0), "d"),  # another query: no contradiction
]


def table_of(tmp_path, *datasets, tokenizer=None):
    return open_table(tmp_path, datasets, (tokenizer or Tokenizer()).pieces(), lambda message: None)


def kept(lengths, role):
    """Characters as tokens, one special token, cut at 4 for queries and 5 for candidates."""
    return np.minimum(lengths + 1, 4 if role == "query" else 5)


def test_counts_of_lists_by_hand(tmp_path):
    report = data_report(table_of(tmp_path, Fixed(LISTS)), ["fixed"], kept)["datasets"]["fixed"]
    assert report == {
        "examples": 4,
        "candidates": 8,
        "distinct_queries": 2,
        "distinct_candidates": 4,  # apple, sky, sea, plum
        "distinct_texts": 6,
        "queries_in_several_examples": 1,
        "candidates_per_example": {"p5": 1, "p50": 2, "p95": 3, "max": 3},
        "tokens": {
            # red, blue, red, red: red and one special token are 4, which fits; blue is cut
            "query": {"p5": 3, "p50": 3, "p95": 4, "max": 4, "truncated": 1 / 4},
            # apple sky sea sky apple sky plum plum: apple (5) is cut, plum (4) and a special token fit
            "candidate": {"p5": 3, "p50": 3, "p95": 5, "max": 5, "truncated": 2 / 8},
        },
        "labels": {"0": 5, "1": 2, "2": 1},
        "confidence": {},
        "without_relevant": 1,
        "positive_and_negative": {"count": 1, "first_examples": ["a", "c"]},
    }


def test_counts_of_pairs_by_hand(tmp_path):
    report = data_report(table_of(tmp_path, Fixed(PAIRS)), ["fixed"])["datasets"]["fixed"]
    assert report["pairs_also_reversed"] == 1
    assert "positive_and_negative" not in report  # chosen here, rejected there: that is what pairs are
    assert report["confidence"] == {"0.6": 1, "0.9": 2}
    assert "truncated" not in report["tokens"]["query"]


def test_each_dataset_is_counted_apart(tmp_path):
    table = table_of(tmp_path, Fixed(LISTS, "lists"), Fixed(PAIRS, "pairs"))
    datasets = data_report(table, ["lists", "pairs"])["datasets"]
    alone = data_report(table_of(tmp_path, Fixed(PAIRS, "pairs")), ["pairs"])["datasets"]
    assert datasets["pairs"] == alone["pairs"]
    assert datasets["lists"]["examples"] == 4 and datasets["lists"]["labels"] == {"0": 5, "1": 2, "2": 1}


def test_overlap_with_evaluation(tmp_path):
    """Shared: the query red, the pair (red, sky), the candidates sky and apple; blue with plum is a new pair."""
    other = table_of(tmp_path, Fixed([Example("red", ("sky", "moon"), (1.0, 0.0), "x"),
                                      Example("green", ("apple", "sky"), (1.0, 0.0), "y")], "other"))  # fmt: skip
    report = data_report(table_of(tmp_path, Fixed(LISTS)), ["fixed"], evaluations={"other": (other, all_pairs(other))})
    assert report["overlap"] == {
        "other": {
            "queries": {"shared": 1, "of": 2},
            "pairs": {"shared": 1, "of": 4},
            "candidates": {"shared": 2, "of": 3},
        }
    }
    assert lines(report)[-1] == (
        "warning: other shares with the training data 1 of 2 queries, 1 of 4 pairs, 2 of 3 candidates"
    )


def test_a_pair_is_not_its_reverse(tmp_path):
    first = table_of(tmp_path, Fixed([Example("a", ("b",), (1.0,), "x")], "first"))
    second = table_of(tmp_path, Fixed([Example("b", ("a",), (1.0,), "x")], "second"))
    report = data_report(first, ["first"], evaluations={"second": (second, all_pairs(second))})
    assert report["overlap"]["second"]["pairs"] == {"shared": 0, "of": 1}
    assert lines(report)[-1].startswith("second shares")  # nothing to warn of


def test_what_reading_met_is_kept_for_later_runs(tmp_path):
    rows = ["{", '{"query": "q", "passage1": "a", "passage2": "b", "preferred": "A", "confidence_score": 20}',
            '{"query": "q", "passage1": "a", "passage2": "b", "preferred": "A", "confidence_score": 90}']  # fmt: skip
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows))

    def load() -> Records:
        return Records(name="soil", path=str(tmp_path / "pairs.jsonl"), on_bad_record="skip", min_confidence=50)

    table_of(tmp_path, load())
    report = data_report(table_of(tmp_path, load()), ["soil"])  # the second opening reads no record
    assert report["datasets"]["soil"]["read"]["filtered"] == 1
    assert lines(report)[1:] == [
        "data soil: 1 bad records are excluded, the first: datasets.soil: pairs.jsonl:1: not JSON: unexpected end of data: line 1 column 2 (char 1)",
        "data soil: 1 records filtered out",
    ]


def test_lines_name_what_is_worth_a_look(tmp_path):
    said = lines(data_report(table_of(tmp_path, Fixed(LISTS)), ["fixed"], kept))
    assert said == [
        "data fixed: 4 examples, 8 candidates, 6 distinct texts · query tokens p50 3, p95 4, max 4, 25.0% cut · "
        "candidate tokens p50 3, p95 5, max 5, 25.0% cut",
        "data fixed: 1 candidates are relevant in one example of their query and not in another (a, c)",
    ]
    assert lines(data_report(table_of(tmp_path, Fixed(PAIRS, "pairs")), ["pairs"]))[1] == (
        "data pairs: 1 pairs are in the data in both directions"
    )


def test_histograms_and_quantiles():
    assert histogram(np.array([1.0, 0.0, 1.0, np.nan])) == {"0": 1, "1": 2}
    assert histogram(np.arange(11.0)) == {"0 to 2": 2, "2 to 4": 2, "4 to 6": 2, "6 to 8": 2, "8 to 10": 3}
    assert histogram(np.array([])) == {} and quantiles(np.array([])) == {}
    assert quantiles(np.arange(1, 101)) == {"p5": 5, "p50": 50, "p95": 95, "max": 100}


def test_the_report_is_json(tmp_path):
    report = data_report(table_of(tmp_path, Fixed(LISTS)), ["fixed"], kept)
    write_report(tmp_path / "deep" / "data_report.json", report)
    assert json.loads((tmp_path / "deep" / "data_report.json").read_text()) == report
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["data_report.json"]


def test_training_writes_it(tmp_path, capsys):
    train(*CONTRASTIVE, f"cache_dir={tmp_path}", "exp_name=x", "datasets.toy_contrastive.num_posts=4",
          "eval_datasets=[toy_contrastive]", "eval_datasets.toy_contrastive.num_posts=4",
          "eval_datasets.toy_contrastive.part=dev", "eval_datasets.toy_contrastive.num_profiles=200")  # fmt: skip
    report = json.loads((tmp_path / "x" / "data_report.json").read_text())
    assert report["datasets"]["toy_contrastive"]["examples"] == 4
    assert report["datasets"]["toy_contrastive"]["tokens"]["candidate"]["truncated"] > 0
    assert report["overlap"]["toy_contrastive"]["queries"] == {"shared": 0, "of": 4}
    assert "data toy_contrastive: 4 examples" in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 2, 19, 20, 21, 40, 100, 333])
def test_quantiles_of_counts_are_those_of_the_values(count):
    for seed in range(20):
        values = np.random.default_rng(seed).integers(0, 12, count)
        distinct, times = np.unique(values, return_counts=True)
        assert quantiles(distinct, times) == quantiles(values)
