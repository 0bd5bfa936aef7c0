"""Numbers and sentences of a report on runs whose values are worked by hand."""

from __future__ import annotations

import json

import pytest

from rankpo.report import contents
from rankpo.report.groups import group_runs
from rankpo.report.material import Library
from rankpo.report.page import Content, as_data, render
from rankpo.report.queries import browser, within
from rankpo.report.runs import open_runs
from rankpo.report.summary import sentences
from tests.report.world import DOCUMENTS, Corpus, Preferences, write_evaluation, write_world

NDCG, AGREEMENT = ("dev", "ndcg@20"), ("pairs", "accuracy")


@pytest.fixture
def parts(tmp_path):
    runs = open_runs([str(folder) for folder in write_world(tmp_path)])
    groups = group_runs(runs, {})
    chosen = contents.systems(groups)
    return runs, groups, chosen, contents.find_baseline(chosen, None, runs)


def test_seeds_are_means_with_a_deviation(parts):
    """Stage one .9; plain .4 and .2: .3 ± .1414, .6 below on every query."""
    _, _, chosen, reference = parts
    assert [system.name for system in chosen] == ["stage_one", "plain", "replayed"] and reference.name == "stage_one"
    cells = contents.table(chosen, [NDCG, AGREEMENT], reference)
    cell = cells["plain"][NDCG]
    assert (cell.value, cell.spread, cell.seeds) == (pytest.approx(0.3), pytest.approx(0.2 / 2**0.5), 2)
    assert cell.comparison.difference == pytest.approx(-0.6) and cell.comparison.losses == 3
    assert cells["stage_one"][NDCG].comparison is None
    # four comparisons; nDCG of plain: 2/2^3 = .25, the smallest raw value, times 4
    assert cell.comparison.p == 0.25 and cell.adjusted_p == 1.0


def test_frontier_by_hand(parts):
    """Kept: plain .3/.9, replayed 1. Agreement by query: stage one (.5 + .5)/2, plain 1, replayed (.5 + 1)/2."""
    _, _, chosen, reference = parts
    found = contents.frontier(chosen, [NDCG, AGREEMENT], reference)
    assert [(p.name, round(p.x, 6), p.y, p.role) for p in found.points] == [
        ("stage_one", 1.0, 0.5, "baseline"),
        ("plain", round(1 / 3, 6), 1.0, "plain"),
        ("replayed", 1.0, 0.75, ""),
    ]
    assert found.points[1].x_spread == pytest.approx(0.2 / 2**0.5 / 0.9)


def test_a_model_named_oracle_is_the_oracle(parts, tmp_path):
    write_evaluation(tmp_path / "stage_one", "oracle", {"q1": 1.0, "q2": 1.0, "q3": 1.0}, {})
    (tmp_path / "stage_one/evaluation/oracle/pairs").mkdir()
    for name in ("per_query.jsonl", "metrics.json"):
        source = tmp_path / "plain_1/evaluation/model/pairs" / name
        (tmp_path / "stage_one/evaluation/oracle/pairs" / name).write_text(source.read_text())
    runs = open_runs([str(tmp_path / name) for name in ("stage_one", "plain_1")])
    chosen = contents.systems(group_runs(runs, {}))
    found = contents.frontier(chosen, [NDCG, AGREEMENT], contents.find_baseline(chosen, None, runs))
    assert {p.name: p.role for p in found.points} == {
        "stage_one: model": "baseline",
        "stage_one: oracle": "oracle",
        "plain_1": "plain",
    }


def test_the_baseline(parts, tmp_path):
    """The start model of an evaluated run comes before stage one; a run's or a row's name may be given."""
    runs, _, chosen, _ = parts
    assert contents.find_baseline(chosen, "plain_2", runs).name == "plain"
    assert contents.find_baseline(chosen, "replayed", runs).name == "replayed"
    with pytest.raises(
        ValueError, match=r"task\.baseline=x is not among the evaluated models: stage_one, plain, replayed"
    ):
        contents.find_baseline(chosen, "x", runs)
    assert contents.find_baseline(chosen[1:], None, runs).name == "plain", "stage one itself was not evaluated"
    for model in ("start", "FINAL"):
        write_evaluation(tmp_path / "run", model, {"q1": 0.5}, {})
    runs = open_runs([str(tmp_path / "run"), str(tmp_path / "stage_one")])
    assert contents.find_baseline(contents.systems(group_runs(runs, {})), None, runs).name == "run: start"


def test_a_metric_that_one_model_lacks_stays_for_the_others(parts, tmp_path):
    write_evaluation(tmp_path / "extra", "model", {"q1": 0.5, "q2": 0.5, "q3": 0.5}, {})
    runs = open_runs([str(tmp_path / name) for name in ("stage_one", "extra")])
    chosen = contents.systems(group_runs(runs, {}))
    pairs = contents.measured(chosen, ())
    assert pairs == [NDCG, AGREEMENT]
    cells = contents.table(chosen, pairs, chosen[0])
    assert AGREEMENT not in cells["extra"] and cells["extra"][NDCG].value == 0.5
    assert contents.measured(chosen, ["dev/ndcg@20"]) == [NDCG] and contents.measured(chosen, ["accuracy"]) == [
        AGREEMENT
    ]


def test_a_second_name_of_the_same_numbers_is_left_out(tmp_path):
    write_evaluation(tmp_path / "run", "model", {"q1": 0.5, "q2": 0.25}, {})
    path = tmp_path / "run/evaluation/model/dev/per_query.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    extended = [{**row, "ndcg_exp@20": row["ndcg@20"], "mrr@10": 1 - row["ndcg@20"]} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in extended))
    chosen = contents.systems(group_runs(open_runs([str(tmp_path / "run")]), {}))
    assert contents.measured(chosen, ()) == [NDCG, ("dev", "mrr@10")]


def test_the_summary_says_what_alignment_cost(parts):
    _, groups, chosen, reference = parts
    pairs = [NDCG, AGREEMENT]
    found = contents.frontier(chosen, pairs, reference)
    lines = sentences(groups, pairs, contents.table(chosen, pairs, reference), reference, found)
    assert lines[0] == (
        "4 runs of 3 recipes; runs of one recipe differ in their seed alone. Differences are measured from stage_one."
    )
    assert lines[1] == "Highest ndcg@20 on dev: the baseline, stage_one, with 0.9000."
    assert lines[2].startswith("Highest accuracy on pairs: plain with 1.0000, +0.5000 from the baseline (not a signif")
    assert lines[3] == "plain agrees most with the preferences (1.0000) and keeps 33.3 % of the baseline's ndcg@20."
    assert lines[4] == "Of the models that keep at least 98 %, replayed agrees most: 0.7500, +0.2500 from the baseline."
    assert lines[5] == "plain_1 is not finished: 2 updates so far."


def test_query_data_by_hand(parts):
    _, _, chosen, reference = parts
    runs = open_runs([str(run.folder) for system in chosen for run in system.group.runs])
    library = Library([Corpus(), Preferences()], [item for run in runs for item in run.evaluations])
    (found,) = browser(chosen, [NDCG, AGREEMENT], reference, library)
    assert [model["name"] for model in found["models"]] == ["stage_one", "plain", "replayed"] and found["base"] == 0
    assert "first of 2 seeds" in found["models"][1]["note"]
    first = next(query for query in found["queries"] if query["id"] == "q1")
    documents = [document for document, _ in found["documents"]]
    by_document = {documents[hit[0]]: hit[1:] for hit in first["hits"]}
    # grade, then the rank of each model: 0 where it has not ranked the document
    assert by_document == {"d1": [2, 1, 3, 2], "d2": [0, 3, 1, 0], "d3": [1, 2, 2, 1]}
    assert [[documents[n] for n in pair] for pair in first["judge"]] == [["d1", "d3"], ["d3", "d2"]]
    # stage one has d1 > d3 > d2: both; plain d2 > d3 > d1: neither; replayed d3 > d1, d2 unranked: one of two
    assert first["agrees"] == [[2, 2], [0, 2], [1, 2]]
    assert first["values"] == [[0.9], [pytest.approx(0.3)], [1.0]]
    assert dict(found["documents"])["d3"] == DOCUMENTS["d3"]
    second = next(query for query in found["queries"] if query["id"] == "q2")
    assert second["judge"] == [], "the judge's other passage is not in the corpus"


def test_without_texts_ids_and_ranks_stay(parts):
    _, _, chosen, reference = parts
    (found,) = browser(chosen, [NDCG], reference, Library([], []))
    assert found["queries"][0]["text"] == "" and found["queries"][0]["hits"][0][1] is None


def test_a_data_set_that_cannot_be_read_again_is_named(parts):
    runs, *_ = parts
    source = {"_target_": "rankpo.data.readers.beir.Beir", "name": "dev", "path": "/nowhere"}
    evaluation = runs[0].evaluations[0]
    object.__setattr__(evaluation, "source", source)
    library = Library([], [evaluation, evaluation])
    assert len(library.notes) == 1 and library.notes[0].startswith("The texts of dev are not shown: ")


def test_query_data_fits_its_limit(parts):
    """The most changed queries stay, documents that nobody names go, and the numbers still point at the right ones."""
    _, _, chosen, reference = parts
    (found,) = browser(chosen, [NDCG, AGREEMENT], reference, Library([Corpus(), Preferences()], []))
    names = {query["id"]: [found["documents"][hit[0]][0] for hit in query["hits"]] for query in found["queries"]}
    (small,) = within([json.loads(json.dumps(found))], len(json.dumps(found)) - 400)
    assert 0 < len(small["queries"]) < 3 and small["total"] == 3
    for query in small["queries"]:
        assert [small["documents"][hit[0]][0] for hit in query["hits"]] == names[query["id"]]
    used = {hit[0] for query in small["queries"] for hit in query["hits"]}
    assert used == set(range(len(small["documents"])))


def test_json_in_the_page_ends_no_element():
    text = as_data({"a": "</script><!--<script>\u2028&amp;"})
    assert not set("<>&\u2028") & set(text) and json.loads(text) == {"a": "</script><!--<script>\u2028&amp;"}


def test_labels_title_the_page(parts):
    runs, *_ = parts
    page = render(Content(title="t", runs=runs, labels={"plain_1": "RankPO alone", "plain_2": "RankPO alone"}))
    assert "RankPO alone" in page and "× 2" in page
