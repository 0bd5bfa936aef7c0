"""Permutations parsed from answers of a model: valid identifiers are kept, missing ones appended, and repairs counted.

Prose with numbers, a refusal or an error message is a failure.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rankpo.data.text.identifiers import Identifiers

MAX_DIGITS = 100  # Of an identifier; Python converts no integers with thousands of digits.


@dataclass(frozen=True)
class Permutation:
    """A parsed order. order: positions in the window, best first, always a permutation. status: ok, repaired or failed.

    repairs: counts of duplicate, out_of_range, missing and format. reason: the reason of a failure.
    """

    order: tuple[int, ...]
    status: str
    repairs: Mapping[str, int] = field(default_factory=dict)
    reason: str = ""


def parse(
    answer: str, count: int, identifiers: Identifiers, answer_pattern: str | None = None, thinking: bool = False
) -> Permutation:
    """The order of `count` passages in an answer. thinking: whether the prompt has opened a think tag."""
    kept = tuple(range(count))
    text = _without_reasoning(answer, thinking)
    if text is None:
        return Permutation(kept, "failed", reason="unfinished reasoning")
    answers = re.findall(r"<answer>(.*?)</answer>", text, flags=re.DOTALL)
    text = unicodedata.normalize("NFKC", answers[-1] if answers else text)
    found, repairs = _found(text, identifiers, answer_pattern), {}
    if not found:
        found = _bare(text, identifiers)
        repairs = {"format": 1}
    if not found:
        return Permutation(kept, "failed", reason="no identifier")
    places = {label: place for place, label in enumerate(identifiers.labels[:count])}
    known = [places[label] for label in map(_normal, found) if label in places]
    order = list(dict.fromkeys(known))
    if not order:
        return Permutation(kept, "failed", reason="no identifier of the window")
    repairs |= {"duplicate": len(known) - len(order), "out_of_range": len(found) - len(known)}
    repairs |= {"missing": count - len(order)}
    repairs = {name: number for name, number in repairs.items() if number}
    order += [place for place in kept if place not in set(order)]
    return Permutation(tuple(order), "repaired" if repairs else "ok", repairs)


def _without_reasoning(answer: str, thinking: bool) -> str | None:
    """The text after the last closing think tag; None if the tag is not closed."""
    _, closed, rest = answer.rpartition("</think>")
    opened = "<think>" in rest or (thinking and not closed)
    return None if opened else rest


def _found(text: str, identifiers: Identifiers, answer_pattern: str | None) -> list[str]:
    """The identifiers in brackets: the longest sequence with separators, or all of them if there is none."""
    one, marked = _pattern(identifiers, answer_pattern)
    joint = re.escape(identifiers.separator.strip())
    matches = list(re.finditer(one, text))
    runs: list[list[str]] = []
    end = -1
    for match in matches:
        joined = runs and re.fullmatch(rf"\s*{joint}\s*", text[end : match.start()])
        runs[-1].append(match.group(1)) if joined else runs.append([match.group(1)])
        end = match.end()
    longest = max((len(run) for run in runs), default=0)
    if longest >= 2:
        return [run for run in runs if len(run) == longest][-1]
    return [match.group(1) for match in matches] if marked else []


def _pattern(identifiers: Identifiers, answer_pattern: str | None) -> tuple[str, bool]:
    """A pattern with one group, and whether single matches are reliable; bare letters are not, as prose has them."""
    if answer_pattern is not None:
        return answer_pattern, True
    label = r"\d+" if identifiers.scheme == "numbers" else "[A-Za-z]"
    if identifiers.open and identifiers.close:
        return rf"{re.escape(identifiers.open)}\s*({label})\s*{re.escape(identifiers.close)}", True
    return rf"(?<!\w)({label})(?!\w)", False


def _bare(text: str, identifiers: Identifiers) -> list[str]:
    """Identifiers without brackets, if the answer holds nothing else, such as `2 > 1 > 3` or a JSON array."""
    label = r"\d+" if identifiers.scheme == "numbers" else "[A-Za-z]"
    joint = re.escape(identifiers.separator.strip())
    stripped = text.strip()
    if re.fullmatch(rf"{label}(\s*{joint}\s*{label})+", stripped):
        return re.findall(label, stripped)
    try:
        values = json.loads(stripped)
    except (ValueError, RecursionError):  # Also for integers with thousands of digits, and deep nesting.
        return []
    plain = isinstance(values, list) and all(
        isinstance(value, int | str) and not isinstance(value, bool) for value in values
    )
    return [str(value) for value in values] if plain else []


def _normal(label: str) -> str:
    return str(int(label)) if label.isdecimal() and len(label) <= MAX_DIGITS else label.upper()


def tally(found: Sequence[Permutation]) -> dict[str, int]:
    """Counts of ok, repaired and failed."""
    return {status: sum(item.status == status for item in found) for status in ("ok", "repaired", "failed")}
