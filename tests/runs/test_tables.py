"""Tables of the console: never wider than a hundred characters or ten columns, nothing lost."""

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
    assert len(parts) == 2 and all(part.split()[0] == "model" and "m5" in part for part in parts)


def test_cells_are_no_markup_and_no_new_lines():
    text = text_of([{"a": "[bold]x[/bold]", "b": "y\nz"}])
    assert text == "a               b\n[bold]x[/bold]  y\\nz\n"


def test_a_single_wide_column_is_folded():
    lines = text_of([{"a": "x" * 250}]).splitlines()
    assert max(map(len, lines)) <= WIDTH + 2 and "".join(lines[1:]).count("x") == 250
