"""Line charts as SVG text, without libraries or network, in the colours of the page's light and dark themes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from rankpo.report.scales import Axis, Frame, Scale, axes, opened, scales

FRAME = Frame(width=640, height=300)
MAX_POINTS = 160  # Points of a line; more are not visible in a chart of this size.
MAX_DOTS = 40  # Lines with more points have no dots.

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Series:
    """A named line of (x, y). band: (x, low, high) around it. key: the entry of the legend that shows or hides it."""

    name: str
    key: str
    colour: str
    points: Points
    band: Sequence[tuple[float, float, float]] = ()
    dash: str = ""


def lines(series: Sequence[Series], x_label: str, y_label: str, frame: Frame = FRAME) -> str:
    """Draws a line for each series, or a dot if it has a single point. Returns "" if no series has a finite point."""
    kept = [_finite(item) for item in series]
    kept = [item for item in kept if item.points]
    if not kept:
        return ""
    xs = [x for item in kept for x, _ in item.points]
    ys = [y for item in kept for _, y in item.points] + [y for item in kept for _, *ends in item.band for y in ends]
    x_scale, y_scale = scales(frame, xs, ys)
    drawn = "".join(_series(item, x_scale, y_scale) for item in kept)
    axis = axes(frame, x_scale, y_scale, Axis(label=x_label), Axis(label=y_label))
    return f"{opened(frame, x_scale, y_scale, f'{y_label} by {x_label}')}{axis}{drawn}</svg>"


def _finite(series: Series) -> Series:
    points = [(x, y) for x, y in series.points if math.isfinite(x) and math.isfinite(y)]
    band = [row for row in series.band if all(math.isfinite(value) for value in row)]
    thinned = thin(points)
    return Series(
        name=series.name, key=series.key, colour=series.colour, points=thinned, band=thin_band(band), dash=series.dash
    )


def thin(points: Points, most: int = MAX_POINTS) -> Points:
    """Returns at most `most` points: the first, the last, and means over segments of equal length."""
    if len(points) <= most:
        return points
    inner = points[1:-1]
    edges = [round(number * len(inner) / (most - 2)) for number in range(most - 1)]
    stretches = [inner[start:end] for start, end in pairwise(edges)]
    means = [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in stretches]
    return [points[0], *means, points[-1]]


def thin_band(band: Sequence[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
    """Returns a band over the same segments as its line."""
    lows, highs = thin([(x, low) for x, low, _ in band]), thin([(x, high) for x, _, high in band])
    return [(x, low, high) for (x, low), (_, high) in zip(lows, highs, strict=True)]


def _series(series: Series, x_scale: Scale, y_scale: Scale) -> str:
    placed = [(x_scale(x), y_scale(y), x, y) for x, y in series.points]
    parts = []
    if len(series.band) > 1:
        upper = [f"{x_scale(x):.1f},{y_scale(high):.1f}" for x, _, high in series.band]
        lower = [f"{x_scale(x):.1f},{y_scale(low):.1f}" for x, low, _ in reversed(series.band)]
        parts.append(f'<polygon class="band" points="{" ".join(upper + lower)}"/>')
    if len(placed) > 1:
        # The page's script computes values from these pixels; two decimals give four digits.
        path = " ".join(f"{px:.2f},{py:.2f}" for px, py, _, _ in placed)
        dash = f' stroke-dasharray="{series.dash}"' if series.dash else ""
        parts.append(f'<polyline points="{path}"{dash}/>')
    if len(placed) <= MAX_DOTS:
        for px, py, x, y in placed:
            title = escape(f"{series.name}: {x:g}, {y:.4g}")
            parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="2.6"><title>{title}</title></circle>')
    key, name = escape(series.key), escape(series.name)
    return f'<g class="series" data-key="{key}" data-name="{name}" style="--c:{series.colour}">{"".join(parts)}</g>'
