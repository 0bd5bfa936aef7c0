"""Axes of a chart: ranges, round ticks, and the map from values to pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Scale:
    """A linear map of [low, high] to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A chart's size in pixels, and the margins that hold its axes."""

    width: int
    height: int
    left: int = 62
    right: int = 16
    top: int = 14
    bottom: int = 44


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A label, and the format of ticks."""

    label: str
    written: Callable[[float], str] = "{:g}".format


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Returns about `about` round numbers that cover [low, high], in steps of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round((first + number) * step, 12) for number in range(int((high - first * step) / step + 1e-9) + 1)]


def bounds(values: Sequence[float]) -> tuple[float, float]:
    """Returns the range of the values with a small margin; never empty."""
    low, high = min(values), max(values)
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return low - room, high + room


def scales(frame: Frame, xs: Sequence[float], ys: Sequence[float]) -> tuple[Scale, Scale]:
    """The scales of a chart that shows these values."""
    x_scale = Scale(*bounds(xs), frame.left, frame.width - frame.right)
    return x_scale, Scale(*bounds(ys), frame.height - frame.bottom, frame.top)


def axes(frame: Frame, x_scale: Scale, y_scale: Scale, x_axis: Axis, y_axis: Axis) -> str:
    """SVG of the grid, the ticks and the two labels."""
    right, base = frame.width - frame.right, frame.height - frame.bottom
    parts = []
    for tick in ticks(y_scale.low, y_scale.high, max(3, frame.height // 55)):
        y = y_scale(tick)
        parts.append(f'<line class="grid" x1="{frame.left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text x="{frame.left - 7}" y="{y + 4:.1f}" text-anchor="end">{escape(y_axis.written(tick))}</text>'
        )
    for tick in ticks(x_scale.low, x_scale.high, max(4, frame.width // 110)):
        x = x_scale(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.top}" y2="{base}"/>')
        parts.append(f'<text x="{x:.1f}" y="{base + 17}" text-anchor="middle">{escape(x_axis.written(tick))}</text>')
    parts.append(
        f'<text class="axis" x="{(frame.left + right) / 2:.0f}" y="{frame.height - 6}" text-anchor="middle">'
        f"{escape(x_axis.label)}</text>"
    )
    middle = (frame.top + base) / 2
    parts.append(
        f'<text class="axis" x="14" y="{middle:.0f}" text-anchor="middle" transform="rotate(-90 14 {middle:.0f})">'
        f"{escape(y_axis.label)}</text>"
    )
    return "".join(parts)


def opened(frame: Frame, x_scale: Scale, y_scale: Scale, label: str) -> str:
    """Returns the opening tag. The script converts pixels to values with its data attributes."""
    spans = " ".join(
        f'data-{name}="{scale.low:.9g} {scale.high:.9g} {scale.start:g} {scale.end:g}"'
        for name, scale in (("x", x_scale), ("y", y_scale))
    )
    return f'<svg class="chart" viewBox="0 0 {frame.width} {frame.height}" role="img" aria-label="{escape(label)}" {spans}>'
