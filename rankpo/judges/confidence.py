"""Confidences that judges state, in percent."""

from __future__ import annotations

import re

# Each repetition is bounded, so that the time is linear in the length of an answer.
SCALE = r"(?:from\s{1,3})?[01]\s{0,3}%?\s{0,3}(?:-|–|—|to)\s{0,3}(?P<top>100|10|5|1)(?!\d)\s{0,3}%?"
STATED = re.compile(
    rf"""confidence(?:[_\s]{{1,5}}(?:score|level|rating))?
    (?:[^\w\n]{{0,20}}?{SCALE})?
    (?P<gap>\W{{0,30}}?)
    (?P<number>\d{{1,6}}(?:\.\d{{1,20}})?)
    (?:\s{{0,3}}(?:/|out\ of)\s{{0,3}}(?P<of>\d{{1,4}}))?""",
    re.IGNORECASE | re.VERBOSE,
)
MINUS = re.compile(r"[:=]\s{0,20}[-−]$")


def stated_percent(text: str) -> float | None:
    """Returns the first confidence in a text, such as "Confidence: 85", "confidence (0-10): 8" or "Confidence: 9/10".

    Returns None if there is none. Raises ValueError for a number outside of its scale.
    """
    found = STATED.search(text)
    if found is None:
        return None
    number, scale = found.group("number"), found.group("of") or found.group("top")
    if MINUS.search(found.group("gap")):
        raise ValueError(f"the confidence is -{number}; 0 to 100 is allowed")
    if scale is None:
        return percent(number)
    if not 0 <= float(number) <= float(scale):
        raise ValueError(f"the confidence is {number} of {scale}")
    return 100 * float(number) / float(scale)


def percent(number: str) -> float:
    """Returns a confidence in percent. A fraction with a decimal point from 0.0 to 1.0 is a probability.

    Raises ValueError for numbers outside of 0 to 100, and for other texts.
    """
    value = float(number)
    if not 0 <= value <= 100:
        raise ValueError(f"the confidence is {value:g}; 0 to 100 is allowed")
    return 100 * value if value <= 1 and "." in number else value
