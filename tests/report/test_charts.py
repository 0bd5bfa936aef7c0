"""Charts: ticks, ranges, thinned lines, bands, and the frontier's Pareto line and labels."""

from __future__ import annotations

import re

import pytest

from rankpo.report import charts, frontier, scales
from rankpo.report.charts import Series
from rankpo.report.frontier import Point


def line(*points: tuple[float, float], **more) -> Series:
    return Series(name="a", key="g0", colour="var(--c0)", points=points, **more)


def test_ticks_are_round_and_inside():
    assert scales.ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert scales.ticks(-0.013, 0.021) == [-0.01, 0, 0.01, 0.02]
    low, high = scales.bounds([3.0, 3.0])
    assert low < 3 < high


def test_points_that_are_not_finite_are_left_out():
    assert charts.lines([line((0, float("nan")))], "x", "y") == ""
    assert "nan" not in charts.lines([line((0, 1.0), (1, float("inf")), (2, 2.0))], "x", "y")
    band = [(0, 0.5, 1.5), (1, float("nan"), 2.0), (2, 1.5, 2.5)]
    assert "nan" not in charts.lines([line((0, 1.0), (2, 2.0), band=band)], "x", "y")


def test_a_band_is_part_of_the_range():
    """The band's ends, 0 and 4, are inside the chart: the y scale covers them with room."""
    svg = charts.lines([line((0, 2.0), (1, 2.0), band=[(0, 0.0, 4.0), (1, 0.0, 4.0)])], "x", "y")
    low, high, *_ = map(float, re.search(r'data-y="([^"]*)"', svg)[1].split())
    assert low < 0 and high > 4


def test_long_lines_are_thinned_to_means():
    """1,002 points of y = x: 160 stay, the ends among them, each the mean of its stretch."""
    points = [(float(n), float(n)) for n in range(1002)]
    thin = charts.thin(points)
    assert len(thin) == charts.MAX_POINTS and thin[0] == (0, 0) and thin[-1] == (1001, 1001)
    assert all(x == y for x, y in thin) and thin[1] == (3.5, 3.5)  # the mean of 1 to 6
    assert charts.thin(points[:5]) == points[:5]


def test_names_are_escaped():
    svg = charts.lines([Series(name='"><script>', key='"x', colour="red", points=[(0, 1), (1, 2)])], "<x>", "<y>")
    assert "<script" not in svg and "<x>" not in svg and 'data-key="&quot;x"' in svg


def point(name: str, x: float, y: float, **more) -> Point:
    return Point(name=name, key="g0", number=0, x=x, y=y, **more)


def test_pareto_front_by_hand():
    """b is beaten by c in both; d ties c's agreement and keeps less; the oracle is beyond all and is no recipe."""
    points = [
        point("a", 1.0, 0.5),
        point("b", 0.8, 0.6),
        point("c", 0.9, 0.7),
        point("d", 0.8, 0.7),
        point("e", 0.2, 0.9),
    ]
    oracle = point("o", 2.0, 2.0, role="oracle")
    assert [p.name for p in frontier.pareto([*points, oracle])] == ["e", "c", "a"]


def test_whiskers_span_one_deviation():
    svg = frontier.chart(
        [point("a", 1.0, 0.5), point("b", 0.5, 0.7, x_spread=0.1, y_spread=0.05, seeds=3)], "kept", "agrees"
    )
    low, high, start, end = map(float, re.search(r'data-x="([^"]*)"', svg)[1].split())
    pixel = [start + (x - low) / (high - low) * (end - start) for x in (0.4, 0.6)]
    assert f'd="M{pixel[0]:.1f}' in svg and f"H{pixel[1]:.1f}M" in svg
    assert svg.count('class="whisker"') == 1  # one seed has none


def test_roles_are_marked():
    svg = frontier.chart(
        [
            point("a", 1.0, 0.5, role="baseline"),
            point("b", 0.1, 0.8, role="plain"),
            point("c", 1.0, 0.9, role="oracle"),
        ],
        "kept",
        "agrees",
    )
    assert "a (the baseline)" in svg and "b (plain RankPO)" in svg and "c (oracle)" in svg
    assert svg.count('class="ring"') == 2


@pytest.mark.parametrize("count", [2, 8, 12])
def test_labels_do_not_cover_each_other(count):
    """Points in a cluster: the boxes of their labels are apart."""
    points = [point(f"recipe number {n}", 0.9 + 0.002 * n, 0.6 + 0.01 * (n % 3)) for n in range(count)]
    svg = frontier.chart([*points, point("far", 0.1, 0.9)], "kept", "agrees")
    found = re.findall(r'class="name" x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">([^<]+)<', svg)
    boxes = []
    for x, y, anchor, text in found:
        width = frontier.CHARACTER * len(text)
        left = float(x) - (width if anchor == "end" else 0)
        boxes.append((left, float(y) - 13, left + width, float(y) + 3))
    assert len(boxes) == count + 1
    clashes = [(a, b) for n, a in enumerate(boxes) for b in boxes[:n] if frontier._overlap(a, b)]
    assert clashes == []
