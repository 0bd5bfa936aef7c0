"""Line and scatter charts as SVG text: no library, no network, sharp in print, readable in light and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 12, 34
MAX_NAMED_POINTS = 6  # more names would stand on each other: the legend has them
COLOURS = ("#2f6fb0", "#c2571a", "#3c8a45", "#8a4fa3", "#a8323e", "#5b6770", "#b08a17", "#1d8a8a")

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Scale:
    """A linear map of [low, high] to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that cover [low, high], about so many: steps of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round((first + number) * step, 12) for number in range(int((high - first * step) / step + 1e-9) + 1)]


def bounds(values: Sequence[float]) -> tuple[float, float]:
    """The range of the values with a little room; never empty."""
    low, high = min(values), max(values)
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return low - room, high + room


def lines(series: Mapping[str, Points], x_label: str, y_label: str) -> str:
    """One line for each series of (x, y); a single point is a dot."""
    return _chart(series, x_label, y_label, joined=True)


def scatter(series: Mapping[str, Points], x_label: str, y_label: str) -> str:
    """Named points."""
    return _chart(series, x_label, y_label, joined=False)


def _chart(series: Mapping[str, Points], x_label: str, y_label: str, joined: bool) -> str:
    kept = {
        name: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)] for name, points in series.items()
    }
    everything = [point for points in kept.values() for point in points]
    if not everything:
        return ""
    x_scale = Scale(*bounds([x for x, _ in everything]), LEFT, WIDTH - RIGHT)
    y_scale = Scale(*bounds([y for _, y in everything]), HEIGHT - BOTTOM, TOP)
    parts = [_axes(x_scale, y_scale, x_label, y_label)]
    named = not joined and len(kept) <= MAX_NAMED_POINTS
    for number, (name, points) in enumerate(kept.items()):
        parts.append(_series(name, points, COLOURS[number % len(COLOURS)], x_scale, y_scale, joined, named))
    label = escape(f"{y_label} by {x_label}")
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _axes(x_scale: Scale, y_scale: Scale, x_label: str, y_label: str) -> str:
    parts = []
    for tick in ticks(y_scale.low, y_scale.high):
        y = y_scale(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in ticks(x_scale.low, x_scale.high):
        x = x_scale(tick)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{escape(x_label)}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text x="12" y="{middle}" text-anchor="middle" transform="rotate(-90 12 {middle})">{escape(y_label)}</text>'
    )
    return "".join(parts)


def _series(name: str, points: Points, colour: str, x_scale: Scale, y_scale: Scale, joined: bool, named: bool) -> str:
    placed = [(x_scale(x), y_scale(y), x, y) for x, y in points]
    parts = []
    if joined and len(placed) > 1:
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py, _, _ in placed)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.6" points="{path}"/>')
    if not joined or len(placed) <= 40:
        for px, py, x, y in placed:
            title = escape(f"{name}: {x:g}, {y:.4g}")
            parts.append(
                f'<circle cx="{px:.1f}" cy="{py:.1f}" r="{2.4 if joined else 5}" fill="{colour}"><title>{title}</title></circle>'
            )
    if named and placed:
        px, py, _, _ = placed[0]
        anchor = "end" if px > WIDTH * 0.7 else "start"
        parts.append(
            f'<text x="{px + (-8 if anchor == "end" else 8):.1f}" y="{py + 4:.1f}" text-anchor="{anchor}">{escape(name)}</text>'
        )
    return "".join(parts)


def legend(names: Sequence[str]) -> str:
    """Names with the colours that `lines` and `scatter` give them."""
    items = (
        f'<span><i style="background:{COLOURS[number % len(COLOURS)]}"></i>{escape(name)}</span>'
        for number, name in enumerate(names)
    )
    return f'<p class="legend">{"".join(items)}</p>' if len(names) > 1 else ""
