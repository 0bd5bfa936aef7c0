"""Summaries of the outputs of task=mine and task=annotate for review before training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from rankpo.mining.summary import Histogram, table_row
from rankpo.report import charts
from rankpo.retrieval.shards import META

MINED = "*statistics.json"
JUDGED = "**/report.json"
SEARCHED = "frontier.json"  # of task=frontier
FOUND = "search.json"  # of task=search
SHARES = {
    "orders_agree": "both orders agree",
    "first_shown_preferred": "the passage shown first is preferred",
    "agrees_with_ranking": "agrees with the ranking",
    "longer_passage_preferred": "the longer passage is preferred",
}


@dataclass(frozen=True)
class Mined:
    """One file of hard negatives. row: its statistics. svg: scores of positives and negatives. hardest: examples for review."""

    name: str
    row: Mapping[str, object]
    svg: str
    hardest: Sequence[Mapping[str, object]]


@dataclass(frozen=True)
class Judged:
    """A judge's preferences. shares: (label, share with its count and interval). cost: of all starts."""

    name: str
    pairs: int
    failed: int
    shares: Sequence[tuple[str, Mapping[str, object]]]
    cost: Mapping[str, object]


def has_stages(folder: Path) -> bool:
    return bool(list(folder.glob(MINED)) or list(folder.glob(JUDGED)))


def has_search(folder: Path) -> bool:
    return (folder / SEARCHED).exists()


def has_indexes(folder: Path) -> bool:
    return bool([*near(folder, FOUND), *near(folder, META)])


def near(folder: Path, name: str) -> list[Path]:
    """The files of this name in a folder and in those directly below it, where task=encode and task=search write."""
    return sorted({*folder.glob(name), *folder.glob(f"*/{name}")})


def mined_of(name: str, folder: Path) -> list[Mined]:
    """The files of task=mine in a folder, by name."""
    found = []
    for path in sorted(folder.glob(MINED)):
        for file, values in json.loads(path.read_text(encoding="utf-8"))["files"].items():
            row = {key: value for key, value in table_row(file, values).items() if key != "file"}
            found.append(Mined(f"{name}/{file}", row, _histogram(values["histogram"]), values["hardest"]))
    return found


def _histogram(histogram: Histogram | None) -> str:
    """Shares of positives and of negatives in bins of the score, at the bins' middles; "" without a histogram."""
    if histogram is None:
        return ""
    middles = [(low + high) / 2 for low, high in pairwise(histogram["edges"])]
    series = [
        charts.Series(
            name=name,
            key=name,
            colour=colour,
            points=[(x, n / max(1, sum(counts))) for x, n in zip(middles, counts, strict=True)],
        )
        for name, colour, counts in (
            ("positives", "var(--good)", histogram["positives"]),
            ("negatives", "var(--bad)", histogram["negatives"]),
        )
    ]
    return charts.lines(series, "score", "share")


def judged_of(name: str, folder: Path) -> list[Judged]:
    """The reports of task=annotate in a folder."""
    found = []
    for path in sorted(folder.glob(JUDGED)):
        values = json.loads(path.read_text(encoding="utf-8"))
        shares = [(shown, values[key]) for key, shown in SHARES.items()]
        gaps = values["agrees_with_ranking_by_gap"].items()
        shares += [(f"agrees with the ranking, ranks {gap} apart", share) for gap, share in gaps]
        shares = [(shown, share) for shown, share in shares if share["of"]]
        found.append(Judged(name, values["pairs"], values["failed"], shares, values["cost_of_all_starts"]))
    return found
