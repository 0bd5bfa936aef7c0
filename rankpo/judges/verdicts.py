"""Verdicts: parsing of a judge's answers, and the combination of two calls in both orders."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from rankpo.judges.confidence import percent, stated_percent

# Each repetition is bounded, so that the time is linear in the length of an answer, even a malicious one.
LABEL = r"preferred(?:\s{1,20}(?:candidate|passage))?\s{0,20}:"
ANY_PREFERRED = re.compile(rf"^[^\w\n]{{0,40}}{LABEL}", re.IGNORECASE | re.MULTILINE)
CHOICE = re.compile(
    rf"""[^\w\n]{{0,40}}{LABEL}[\s"'(\[]{{0,20}}(?:candidate\b|passage\b)?[\s"'(\[]{{0,20}}(?P<letter>[AB])(?!\w)""",
    re.IGNORECASE,
)
ENDS = re.compile(r"""\s{0,20}(?:$|[.,;:)\]"'\n]|confidence)""", re.IGNORECASE)
SECOND = re.compile(
    r"""[\s"')\]]{0,20}(?:or|and|/|&|=|,)\s{0,20}(?:candidate|passage)?\s{0,20}["'(]?[AB]\b""", re.IGNORECASE
)
THINKING = re.compile(r"<(/?)think(?:ing)?>", re.IGNORECASE)
FENCED = re.compile(r"```(?:json)?\s{0,20}\{")
OBJECT = re.compile(r"\{[^{}]{0,10000}\}")
MAX_CHARACTERS = 50_000  # of an answer without its thoughts


class Unparsable(ValueError):
    """Raised for an answer without exactly one preference."""


class Unreadable(Unparsable):
    """Raised for an answer that is too long or too deeply nested; it is not stored."""


@dataclass(frozen=True)
class Verdict:
    """choice: A or B, in the shown order. confidence: 0 to 100, or None if not stated."""

    choice: str
    confidence: float | None = None


def parse(text: str) -> Verdict:
    """Parses a judge's answer. Raises Unparsable for ambiguous answers.

    JSON with `preferred` (and `confidence_score`), else the last line beginning `Preferred:` and the first confidence
    after it, else the one JSON object amid prose. The verdict may be followed by prose or blanks, as in real answers.
    """
    bare = bare_answer(text)
    record = json_object(bare, "preferred")
    if record is not None:
        return _of_record(record)
    starts = list(ANY_PREFERRED.finditer(bare))
    if not starts:
        return _amid_prose(bare)
    last = bare[starts[-1].start() :]
    match = _letter(last)
    if match is None:
        raise Unparsable(f"no single letter after {last.splitlines()[0][:60]!r}")
    letter, rest = match
    try:
        return Verdict(letter, stated_percent(rest))
    except ValueError as error:
        raise Unparsable(str(error)) from error


def bare_answer(text: str) -> str:
    """An answer without thoughts and marks of bold text. Raises Unreadable for an answer that is too long."""
    bare = _without_thoughts(text)
    if len(bare) > MAX_CHARACTERS:
        raise Unreadable(f"the answer has {len(bare)} characters, more than {MAX_CHARACTERS}")
    return bare.replace("**", "").replace("__", "").strip()


def _letter(line: str) -> tuple[str, str] | None:
    """The one letter after `Preferred:` and what follows it, or None."""
    found = CHOICE.match(line)
    if found is None:
        return None
    letter, rest = found.group("letter"), line[found.end() :]
    # A lower-case letter counts only if no sentence follows, since it may be the article "a".
    if (letter.islower() and not ENDS.match(rest)) or SECOND.match(rest):
        return None
    return letter.upper(), rest


def _without_thoughts(text: str) -> str:
    """Returns the text outside of <think> blocks; a block without an opening tag starts at the beginning."""
    kept: list[str] = []
    start, thinking = 0, False
    for tag in THINKING.finditer(text):
        if tag.group(1) and not thinking:  # templates put the opening tag into the prompt
            kept.clear()
        elif not thinking:
            kept.append(text[start : tag.start()])
        thinking, start = not tag.group(1), tag.end()
    if thinking:
        raise Unparsable("the thinking block does not end")
    return "".join([*kept, text[start:]])


def json_object(text: str, key: str) -> dict[str, object] | None:
    """Returns the JSON object with a key in the text, possibly between fences; None for other texts."""
    start = 0
    if not text.startswith("{"):
        fence = FENCED.search(text)
        if fence is None:
            return None
        start = fence.end() - 1
    try:
        value, end = json.JSONDecoder().raw_decode(text, start)
    except ValueError:
        return None
    except RecursionError:
        raise Unreadable("the answer is nested too deeply") from None
    if text[end:].strip() and not (start and text[end:].lstrip().startswith("```")):
        return None
    if not isinstance(value, dict):
        return None
    lower = {str(key).lower(): item for key, item in value.items()}
    return lower if key in lower else None


def _amid_prose(text: str) -> Verdict:
    """Returns the verdict of the one JSON object with a preference in the text."""
    records = [
        record for found in OBJECT.finditer(text) if (record := json_object(found.group(), "preferred")) is not None
    ]
    if not records:
        raise Unparsable("no line 'Preferred: A' or 'Preferred: B'")
    if len(records) > 1:
        raise Unparsable(f"{len(records)} JSON objects with a preference; one is needed")
    return _of_record(records[0])


def _of_record(record: dict[str, object]) -> Verdict:
    named, stated = record["preferred"], record.get("confidence_score", record.get("confidence"))
    if not isinstance(named, str) or not isinstance(stated, int | float | str | None) or isinstance(stated, bool):
        raise Unparsable("preferred must be a text, and confidence_score a number")
    letter = named.strip().upper().removeprefix("CANDIDATE").removeprefix("PASSAGE").strip()
    if letter not in ("A", "B"):
        raise Unparsable(f"preferred is {named[:60]!r}; allowed: A, B")
    if stated is None:
        return Verdict(letter)
    try:
        return Verdict(letter, percent(str(stated).strip().rstrip("%")))
    except ValueError as error:
        shown = str(stated)[:60]
        raise Unparsable(f"confidence_score is {shown!r}; a number from 0 to 100 is needed") from error


@dataclass(frozen=True)
class Preference:
    """p: probability that passage 1 is preferred. preferred: A (passage 1) or B. agree: whether both orders prefer the same passage."""

    p: float
    preferred: str
    confidence: int | None
    agree: bool


def combine(given: Verdict | None, swapped: Verdict | None) -> Preference:
    """Combines the verdicts on passages 1 and 2. given: passage 1 was shown as A; swapped: as B. One may be None.

    A call with confidence c, clipped to [.5, 1], has p = c if it chose passage 1, else 1 - c; two calls take the mean.
    A missing confidence counts as 1 for p, and the report counts it as missing.
    """
    chances, votes = [], []
    for verdict, first in ((given, "A"), (swapped, "B")):
        if verdict is None:
            continue
        stated = 1.0 if verdict.confidence is None else min(1.0, max(0.5, verdict.confidence / 100))
        votes.append(verdict.choice == first)
        chances.append(stated if votes[-1] else 1 - stated)
    p = sum(chances) / len(chances)
    known = all(verdict is None or verdict.confidence is not None for verdict in (given, swapped))
    first_wins = p > 0.5 or (p == 0.5 and votes[0])
    return Preference(
        p, "A" if first_wins else "B", round(100 * max(p, 1 - p)) if known else None, len(set(votes)) == 1
    )
