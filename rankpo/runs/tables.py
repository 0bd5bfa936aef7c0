"""Tables for a terminal of 80 characters, with ten columns at most; wider tables are transposed or split."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rankpo.storage.printable import one_line

WIDTH, COLUMNS = 80, 10
GAP = 2  # Spaces between columns.
MAX_TURNED = 4  # Maximum number of rows for a transposed table.


def text_of(rows: Sequence[Mapping[str, object]]) -> str:
    """The rows as aligned columns, with a final line feed.

    A table that is too wide is transposed if it has few rows, or else split into parts that repeat the first column.
    Cells are never cut or wrapped, so that a path can be copied; only a cell that is too wide itself makes a longer line.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[one_line(name) for name in names], *([_cell(row.get(name)) for name in names] for row in rows)]
    if _fits(cells) or len(names) < 2:
        return _drawn(cells)
    turned = [list(column) for column in zip(*cells, strict=True)]
    if len(rows) == 1 or (len(rows) <= MAX_TURNED and _fits(turned)):
        return _drawn(turned)
    return "\n".join(_drawn(part) for part in _parts(cells))


def _widths(cells: Sequence[Sequence[str]]) -> list[int]:
    return [max(Text(line[column]).cell_len for line in cells) for column in range(len(cells[0]))]


def _fits(cells: Sequence[Sequence[str]]) -> bool:
    widths = _widths(cells)
    return len(widths) <= COLUMNS and sum(widths) + GAP * (len(widths) - 1) <= WIDTH


def _parts(cells: Sequence[Sequence[str]]) -> list[list[list[str]]]:
    """Splits the columns into parts that fit beside the first column."""
    parts: list[list[int]] = [[0]]
    for column in range(1, len(cells[0])):
        wider = [*parts[-1], column]
        if len(parts[-1]) > 1 and not _fits([[line[number] for number in wider] for line in cells]):
            parts.append([0, column])
        else:
            parts[-1] = wider
    return [[[line[number] for number in part] for line in cells] for part in parts]


def _drawn(cells: Sequence[Sequence[str]]) -> str:
    """Builds a table with the first line as header. Cells are plain text, without markup."""
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), show_header=False)
    for _ in cells[0]:
        table.add_column(no_wrap=True)
    for line in cells:
        table.add_row(*(Text(cell) for cell in line))
    console = Console(
        file=io.StringIO(), width=sum(_widths(cells)) + GAP * len(cells[0]), color_system=None, legacy_windows=False
    )
    with console.capture() as captured:
        console.print(table)
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else one_line(str(value))
