"""Colours, dashes and marker shapes of runs, chosen by the number of a group, the same in every chart."""

from __future__ import annotations

# Computed in OKLCH: each colour is as far as possible from all previous ones, and has a contrast of at
# least 3.4 : 1 with the page, light or dark (tests/report/test_palette.py measures both again).
LIGHT = (
    *("#397dc4", "#d24011", "#548c03", "#73176f", "#c165dc", "#59431f", "#342daa", "#976c7d", "#8a0316", "#e9548d"),
    *("#0a8d83", "#334868", "#96752a", "#795fe2", "#b0175f", "#115629", "#6c5594", "#8636af", "#924e33", "#5b6a44"),
)
DARK = (
    *("#64a9f3", "#ff8a5c", "#8fc93a", "#d97bd6", "#ebe61b", "#c29f57", "#9a94ff", "#fecfe5", "#f4483f", "#ff7ab0"),
    *("#3fd0c4", "#acc6ec", "#d8e5b8", "#b494d6", "#f69efe", "#20a04e", "#a2788d", "#69fae1", "#fcaf91", "#7bb1a6"),
)
DASHES = ("", "7 3", "2 3", "9 3 2 3")
SHAPES = ("circle", "square", "triangle", "diamond")


def colour(number: int) -> str:
    """The CSS colour of a group of runs; the page defines the variables for light and dark."""
    return f"var(--c{number % len(LIGHT)})"


def dash(number: int) -> str:
    """Returns the stroke-dasharray of a group's lines, which changes after each cycle of colours."""
    return DASHES[number // len(LIGHT) % len(DASHES)]


def shape(number: int) -> str:
    """Returns the marker of a group's points, so that colour is not the only difference between groups."""
    return SHAPES[number % len(SHAPES)]


def css_variables() -> str:
    """`--c0: light-dark(…, …); …` for the page's style sheet."""
    pairs = zip(LIGHT, DARK, strict=True)
    return " ".join(f"--c{number}: light-dark({light}, {dark});" for number, (light, dark) in enumerate(pairs))
