"""Chart of alignment against retention: one point per recipe, whiskers over seeds, and the Pareto line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from rankpo.evaluation.frontier import pareto_optimal
from rankpo.report import palette
from rankpo.report.scales import Axis, Frame, Scale, axes, opened, scales

FRAME = Frame(width=1200, height=520, left=74, right=30, top=24, bottom=52)
LINE_HEIGHT = 17
Box = tuple[float, float, float, float]  # left, top, right, bottom
CHARACTER = 7.2  # pixels of a letter in a label, for placing labels apart


@dataclass(frozen=True, kw_only=True)
class Point:
    """A recipe. x: kept fraction of the baseline's quality. y: agreement with preferences. Both are means.

    x_spread, y_spread: standard deviations over seeds, 0 for one seed. number: of its group, for the colour.
    role: "", "baseline", "plain" or "oracle".
    """

    name: str
    key: str
    number: int
    x: float
    y: float
    x_spread: float = 0.0
    y_spread: float = 0.0
    seeds: int = 1
    role: str = ""

    @property
    def label(self) -> str:
        """The name, with the role of the point."""
        notes = {"baseline": "the baseline", "plain": "plain RankPO", "oracle": "oracle"}
        note = notes.get(self.role, "")
        return self.name if not note or note.lower() in self.name.lower() else f"{self.name} ({note})"


@dataclass(frozen=True, kw_only=True)
class Front:
    """The Pareto-optimal models of one search, as (kept, agreement) in descending order of agreement. key, number: of its
    group."""

    key: str
    number: int
    places: Sequence[tuple[float, float]]


def pareto(points: Sequence[Point]) -> list[Point]:
    """Returns the Pareto-optimal points in descending order of agreement, without oracles."""
    recipes = [point for point in points if point.role != "oracle"]
    return pareto_optimal(recipes, lambda point: (point.x, point.y))


def chart(points: Sequence[Point], kept: str, agreement: str, fronts: Sequence[Front] = ()) -> str:
    """SVG of the frontier. kept, agreement: the axes' labels. fronts: lines to draw in place of that of the points."""
    further = [place for front in fronts for place in front.places]
    xs = [value for p in points for value in (p.x - p.x_spread, p.x + p.x_spread)] + [x for x, _ in further]
    ys = [value for p in points for value in (p.y - p.y_spread, p.y + p.y_spread)] + [y for _, y in further]
    x_scale, y_scale = scales(FRAME, xs, ys)
    axis = axes(FRAME, x_scale, y_scale, Axis(label=kept, written=_percent), Axis(label=agreement))
    lines = [_front(front, x_scale, y_scale) for front in fronts] or [_pareto_line(points, x_scale, y_scale)]
    drawn = [axis, *lines]
    taken = [box for point in points for box in _boxes(point, x_scale, y_scale)]
    for point in sorted(points, key=lambda point: -point.y):
        drawn.append(_point(point, x_scale, y_scale, taken))
    title = f"{agreement} against {kept}"
    return f"{opened(FRAME, x_scale, y_scale, title)}{''.join(drawn)}</svg>"


def _percent(value: float) -> str:
    return f"{100 * value:g} %"


def _pareto_line(points: Sequence[Point], x_scale: Scale, y_scale: Scale) -> str:
    best = pareto(points)
    if len(best) < 2:
        return ""
    path = " ".join(f"{x_scale(point.x):.1f},{y_scale(point.y):.1f}" for point in best)
    return f'<polyline class="pareto" points="{path}"/>'


def _front(front: Front, x_scale: Scale, y_scale: Scale) -> str:
    colour = palette.colour(front.number)
    path = " ".join(f"{x_scale(x):.1f},{y_scale(y):.1f}" for x, y in front.places)
    dots = "".join(
        f'<circle class="dot" cx="{x_scale(x):.1f}" cy="{y_scale(y):.1f}" r="2.5"/>' for x, y in front.places
    )
    line = f'<polyline class="front" points="{path}"/>'
    return f'<g class="series" data-key="{escape(front.key)}" style="--c:{colour}">{line}{dots}</g>'


def _point(point: Point, x_scale: Scale, y_scale: Scale, taken: list[Box]) -> str:
    x, y = x_scale(point.x), y_scale(point.y)
    parts = [f"<title>{escape(_title(point))}</title>", _whiskers(point, x_scale, y_scale)]
    if point.role in ("baseline", "oracle"):
        parts.append(f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="13"/>')
    parts.append(marker("star" if point.role == "oracle" else palette.shape(point.number), x, y, 7))
    left, baseline, anchor = _place_label(point, x, y, taken)
    if abs(baseline - 5 - y) > LINE_HEIGHT:  # A displaced label has a line to its point.
        parts.append(f'<line class="leader" x1="{x:.1f}" y1="{y:.1f}" x2="{left:.1f}" y2="{baseline - 5:.1f}"/>')
    parts.append(
        f'<text class="name" x="{left:.1f}" y="{baseline:.1f}" text-anchor="{anchor}">{escape(point.label)}</text>'
    )
    colour = palette.colour(point.number)
    return f'<g class="series point" data-key="{escape(point.key)}" style="--c:{colour}">{"".join(parts)}</g>'


def _title(point: Point) -> str:
    seeds = f", mean of {point.seeds} seeds" if point.seeds > 1 else ""
    return f"{point.label}: keeps {100 * point.x:.1f} %, agreement {point.y:.4f}{seeds}"


def _whiskers(point: Point, x_scale: Scale, y_scale: Scale) -> str:
    x, y = x_scale(point.x), y_scale(point.y)
    ends = []
    if point.x_spread:
        left, right = x_scale(point.x - point.x_spread), x_scale(point.x + point.x_spread)
        ends.append(f"M{left:.1f} {y:.1f}H{right:.1f}M{left:.1f} {y - 4:.1f}v8M{right:.1f} {y - 4:.1f}v8")
    if point.y_spread:
        low, high = y_scale(point.y - point.y_spread), y_scale(point.y + point.y_spread)
        ends.append(f"M{x:.1f} {low:.1f}V{high:.1f}M{x - 4:.1f} {low:.1f}h8M{x - 4:.1f} {high:.1f}h8")
    return f'<path class="whisker" d="{"".join(ends)}"/>' if ends else ""


def marker(shape: str, x: float, y: float, size: float) -> str:
    """SVG of a circle, square, triangle, diamond or star around (x, y)."""
    if shape == "circle":
        return f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{size:g}"/>'
    corners = {
        "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
        "triangle": ((0, -1.15), (1.1, 0.85), (-1.1, 0.85)),
        "diamond": ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
        "star": ((0, -1.4), (0.4, -0.4), (1.4, 0), (0.4, 0.4), (0, 1.4), (-0.4, 0.4), (-1.4, 0), (-0.4, -0.4)),
    }[shape]
    path = " ".join(f"{x + size * dx:.1f},{y + size * dy:.1f}" for dx, dy in corners)
    return f'<polygon class="dot" points="{path}"/>'


def _boxes(point: Point, x_scale: Scale, y_scale: Scale) -> list[Box]:
    """Returns the boxes that labels must not cover: the marker and the whiskers."""
    x, y = x_scale(point.x), y_scale(point.y)
    left, right = x_scale(point.x - point.x_spread), x_scale(point.x + point.x_spread)
    low, high = y_scale(point.y - point.y_spread), y_scale(point.y + point.y_spread)
    return [(x - 9, y - 9, x + 9, y + 9), (left, y - 4, right, y + 4), (x - 4, high, x + 4, low)]


def _place_label(point: Point, x: float, y: float, taken: list[Box]) -> tuple[float, float, str]:
    """Returns a free position for the label near the point: right, left, above or below."""
    width = CHARACTER * len(point.label)
    chosen = None
    for shift in (0, *(sign * LINE_HEIGHT * step for step in range(1, 14) for sign in (-1, 1))):
        for anchor, left in (("start", x + 16), ("end", x - 16 - width)):
            box = (left, y + shift - 8, left + width, y + shift + 8)
            inside = (
                box[0] >= FRAME.left and box[2] <= FRAME.width and FRAME.top <= y + shift < FRAME.height - FRAME.bottom
            )
            free = not any(_overlap(box, other) for other in taken)
            if inside and free:
                taken.append(box)
                return (left if anchor == "start" else left + width), y + shift + 5, anchor
            chosen = chosen or (left if anchor == "start" else left + width, y + shift + 5, anchor)
    assert chosen is not None
    return chosen


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
