"""Colours of runs: seen on the page in both themes, and told from each other."""

from __future__ import annotations

import math
import re
from itertools import combinations
from pathlib import Path

import pytest

from rankpo.report import palette

CSS = (Path(palette.__file__).parent / "page.css").read_text()


def linear(colour: str) -> tuple[float, float, float]:
    values = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    return tuple(v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values)


def contrast(one: str, other: str) -> float:
    """WCAG 2.2's contrast ratio."""
    light = [0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05 for r, g, b in (linear(one), linear(other))]
    return max(light) / min(light)


def oklab(colour: str) -> tuple[float, float, float]:
    """Ottosson 2020, from linear sRGB."""
    r, g, b = linear(colour)
    long, m, s = (
        math.cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b),
        math.cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b),
        math.cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b),
    )  # fmt: skip
    return (
        0.2104542553 * long + 0.7936177850 * m - 0.0040720468 * s,
        1.9779984951 * long - 2.4285922050 * m + 0.4505937099 * s,
        0.0259040371 * long + 0.7827717662 * m - 0.8086757660 * s,
    )


def variable(name: str) -> tuple[str, str]:
    """(light, dark) of a variable of the style sheet."""
    found = re.search(rf"--{name}: light-dark\((#\w+), (#\w+)\)", CSS)
    assert found is not None
    return found[1], found[2]


@pytest.mark.parametrize(("theme", "colours"), [(0, palette.LIGHT), (1, palette.DARK)])
def test_colours_can_be_seen_and_told_apart(theme, colours):
    page = variable("page")[theme]
    assert min(contrast(colour, page) for colour in colours) >= 3  # WCAG 1.4.11, graphics
    distances = [math.dist(oklab(a), oklab(b)) for a, b in combinations(colours[:16], 2)]
    assert min(distances) > 0.07  # a just noticeable difference is about .02


@pytest.mark.parametrize("name", ["ink", "faint", "good", "bad", "focus"])
def test_text_has_contrast(name):
    """WCAG AA for text, 4.5 : 1, on the page and on tinted ground, in both themes."""
    for theme in (0, 1):
        for ground in ("page", "tint"):
            assert contrast(variable(name)[theme], variable(ground)[theme]) >= 4.5
    assert min(contrast(variable("ink")[theme], variable("mark")[theme]) for theme in (0, 1)) >= 4.5


def test_more_groups_than_colours_differ_by_dash():
    looks = {(palette.colour(n), palette.dash(n)) for n in range(4 * len(palette.LIGHT))}
    assert len(looks) == 4 * len(palette.LIGHT)
