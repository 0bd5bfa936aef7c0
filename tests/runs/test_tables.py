"""Tables of the console: never wider than 80 characters or ten columns, nothing lost."""

from __future__ import annotations

import pytest

from rankpo.runs.tables import COLUMNS, WIDTH, text_of


def row(name: str, count: int) -> dict[str, object]:
    return {"model": name, **{f"data/metric@{n}": n / 7 for n in range(count)}}


@pytest.mark.parametrize(("rows", "columns"), [(1, 5), (1, 17), (3, 17), (4, 30), (7, 17), (20, 25)])
def test_wide_tables_are_turned_or_split(rows, columns):
    text = text_of([row(f"model {n}", columns) for n in range(rows)])
    lines = text.splitlines()
    assert max(map(len, lines)) <= WIDTH and text.endswith("\n")
    for n in range(columns):
        assert f"data/metric@{n}" in text and text.count(f"{n / 7:.4f}") >= rows
    heads = [line.split("  ") for line in lines if line.startswith("model ") and "data/" in line]
    assert all(len([cell for cell in head if cell]) <= COLUMNS for head in heads)


def test_one_wide_row_is_turned():
    assert text_of([row("base", 9)]).splitlines()[:3] == [
        "model          base",
        "data/metric@0  0.0000",
        "data/metric@1  0.1429",
    ]


def test_parts_repeat_the_first_column():
    text = text_of([row(f"m{n}", 12) for n in range(6)])
    parts = text.split("\n\n")
    assert len(parts) == 3 and all(part.split()[0] == "model" and "m5" in part for part in parts)


def test_cells_are_no_markup_and_no_new_lines():
    text = text_of([{"a": "[bold]x[/bold]", "b": "y\nz"}])
    assert text == "a               b\n[bold]x[/bold]  y\\nz\n"


@pytest.mark.parametrize("more", [{}, {"b": 1, "c": 2.5}])
def test_a_path_that_is_too_wide_stays_whole(more):
    """Alone in its row, also where the table has several rows."""
    path = "/home/somebody/" + "long-folder/" * 12
    lines = text_of([{"folder": path, **more}]).splitlines()
    assert f"folder  {path}" in lines if more else lines == ["folder", path]
    several = text_of([{"folder": path, **more}, {"folder": "b", **more}])
    assert path in several and (not more or "2.5000" in several)


def test_a_terminal_of_80_characters_shows_the_results_of_evaluate():
    """Twelve metrics of five models: no line is longer, and each number is whole."""
    names = [f"jobs_test/{metric}" for metric in ("ndcg@10", "ndcg@20", "mrr@10", "recall@20", "recall@100", "map@100")]
    names += [f"retention/{name}" for name in names]
    text = text_of([{"model": f"step-{n}00", **dict.fromkeys(names, n / 7)} for n in range(5)])
    assert WIDTH == 80 and max(map(len, text.splitlines())) <= 80
    assert all(name in text.split() for name in names) and text.count("0.5714") == len(names)
