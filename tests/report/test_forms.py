"""Indexes in a report: forms of vectors with their size, quality and speed, sorted, and the smallest that keeps it."""

from __future__ import annotations

import json

import pytest

from rankpo.errors import StorageError
from rankpo.report.forms import form_sentences, form_tables
from rankpo.report.groups import group_runs
from rankpo.report.page import Content, render
from rankpo.report.runs import open_runs
from tests.browser import Page
from tests.report.world import write_index, write_search_of_forms

NDCG = "beir/ndcg@10"


def row(dtype, megabytes, ndcg, lost=None, **more):
    of_form = {} if lost is None else {f"{NDCG} lost": lost, "same hits": 1 - lost}
    return {"dtype": dtype, "MB": megabytes, NDCG: ndcg, "queries/s": 100.0, **of_form, **more}


FORMS = [row("float32", 8.0, 0.5), row("int8", 2.0, 0.499, 0.001), row("binary", 0.25, 0.4, 0.1)]


@pytest.fixture
def world(tmp_path):
    """An index in three forms, a search of another run without forms, and an index that was not searched."""
    write_search_of_forms(tmp_path / "one", FORMS)
    write_search_of_forms(tmp_path / "two", [], dtype="float16", megabytes=4.0, ndcg=0.45)
    write_index(tmp_path / "three" / "embeddings", rows=5, dtype="int8", num_bytes=1_500_000)
    return [str(tmp_path / name) for name in ("one", "two", "three")]


def tables_of(folders):
    return form_tables(group_runs(open_runs(folders), {}))


def test_the_best_form_is_first_and_an_index_without_a_search_has_a_table_of_its_own(world):
    searched, stored = tables_of(world)
    rows = [(form.index, form.dtype, form.megabytes, form.values[NDCG]) for form in searched.rows]
    assert searched.metrics == (NDCG,)
    assert rows == [
        ("one", "float32", 8.0, 0.5),
        ("one", "int8", 2.0, 0.499),
        ("two", "float16", 4.0, 0.45),
        ("one", "binary", 0.25, 0.4),
    ]
    assert [form.lost.get(NDCG) for form in searched.rows] == [None, 0.001, None, 0.1]
    assert searched.rows[2].speed == pytest.approx(3 / 0.5)
    (alone,) = stored.rows
    assert (alone.index, alone.dtype, alone.documents, alone.megabytes) == ("three", "int8", 5, 1.5)
    assert stored.metrics == () and alone.speed is None


def test_the_summary_names_the_smallest_form_that_keeps_the_metric(world, tmp_path):
    assert form_sentences(tables_of(world)) == [
        f"one: the smallest form that keeps 98 % of {NDCG} is int8, with 2 MB in place of 8 MB of float32 (0.4990 in "
        "place of 0.5000)."
    ]
    write_search_of_forms(tmp_path / "bits", [FORMS[0], FORMS[2]])
    assert form_sentences(tables_of([str(tmp_path / "bits")])) == [
        f"bits: no smaller form than float32 (8 MB) keeps 98 % of {NDCG}."
    ]


def test_the_folder_of_a_search_its_index_and_an_older_file_are_read(world, tmp_path):
    (table,) = tables_of([str(tmp_path / "one" / "search")])
    assert [form.index for form in table.rows] == ["search"] * 3
    write_index(tmp_path / "one" / "embeddings", rows=5, dtype="float32", num_bytes=8)
    assert len(tables_of([str(tmp_path / "one")])) == 1, "an index that was searched is listed once"
    path = tmp_path / "two" / "search" / "search.json"
    values = json.loads(path.read_text())
    del values["dtype"], values["MB"]  # as earlier versions wrote it
    path.write_text(json.dumps(values))
    (older,) = tables_of([str(tmp_path / "two")])
    assert (older.rows[0].dtype, older.rows[0].megabytes) == ("–", None)


def test_more_metrics_than_columns_are_several_tables(tmp_path):
    names = [f"beir/ndcg@{k}" for k in (1, 3, 5, 10)]
    forms = [{"dtype": "float32", "MB": 1.0, **dict.fromkeys(names, 0.5), "queries/s": 1.0}]
    metrics = [name.split("/")[1] for name in names]
    write_search_of_forms(tmp_path / "run", forms, metrics=metrics)
    assert [table.metrics for table in tables_of([str(tmp_path / "run")])] == [tuple(names[:3]), tuple(names[3:])]


def test_a_damaged_file_is_named(world, tmp_path):
    path = tmp_path / "one" / "search" / "search.json"
    path.write_text(path.read_text()[:-30])
    with pytest.raises(StorageError, match=r"search\.json is damaged.*task=search again"):
        tables_of(world)


def test_the_table_in_a_browser(world, tmp_path):
    """A click on a head sorts by size, then the other way round; no console error, and no sideways scrolling."""
    path = tmp_path / "report.html"
    path.write_text(render(Content(title="Forms", runs=open_runs(world))))
    with Page(tmp_path / "profile") as page:
        page.open(f"file://{path}")
        table = "#forms table:first-of-type"
        rows = (
            f"[...document.querySelectorAll('{table} tbody tr')].map(row => [1, 2, 3].map(n => row.cells[n].innerText))"
        )
        assert page.js(rows)[1] == ["int8", "2", "0.4990\n-0.0010 99.8 % kept"]
        page.click(f"{table} th:nth-child(3) button")
        assert [size for _, size, _ in page.js(rows)] == ["8", "4", "2", "0.25"]
        page.click(f"{table} th:nth-child(3) button")
        assert [size for _, size, _ in page.js(rows)] == ["0.25", "2", "4", "8"]
        assert page.js("document.querySelector('nav a[href=\"#forms\"]').innerText") == "Indexes"
        assert "the smallest form that keeps 98 %" in page.js("document.querySelector('#summary').innerText")
        assert page.js("document.documentElement.scrollWidth") <= 1280
        assert page.errors == []
