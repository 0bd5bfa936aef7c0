"""Orders: parsing of a judge's order of a list, and the combination of two orders of the same list."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from rankpo.data.text import permutations
from rankpo.data.text.identifiers import Identifiers, labels_of_scheme
from rankpo.judges.verdicts import Unparsable, bare_answer, json_object

MAX_PASSAGES = 26  # One letter for each.
RANKING = re.compile(r"^[^\w\n]{0,40}(?:final\s{1,20})?ranking\s{0,20}:", re.IGNORECASE | re.MULTILINE)
SEPARATOR = " > "


@dataclass(frozen=True)
class Order:
    """ranking: positions, best first. agreement: the share of the pairs of passages that both answers order alike, or
    None with one answer."""

    ranking: tuple[int, ...]
    agreement: float | None


def letters(count: int) -> tuple[str, ...]:
    """A, B, … of the passages of a list, in the order in which they are shown."""
    return labels_of_scheme("letters", count)


def order_words(ranking: Sequence[int]) -> str:
    """The answer of a computed judgement. ranking: positions, best first."""
    labels = letters(len(ranking))
    return f"Ranking: {SEPARATOR.join(labels[place] for place in ranking)}"


def parse_order(text: str, count: int) -> tuple[int, ...]:
    """Parses a judge's order of `count` passages: positions, best first.

    JSON with `ranking`, else the letters after the last line that begins with `Ranking:`, or in the whole answer. Raises
    Unparsable for an answer that does not have every letter once.
    """
    bare = bare_answer(text)
    record = json_object(bare, "ranking")
    if record is not None:
        named = _of_record(record)
    else:
        starts = list(RANKING.finditer(bare))
        named = bare[starts[-1].end() :] if starts else bare
    identifiers = Identifiers("letters", letters(count), "", "", SEPARATOR, (), (), (), (), (), True)
    found = permutations.parse(re.sub(r"[\[\]()]", "", named), count, identifiers)
    problems = {name: number for name, number in found.repairs.items() if name != "format"}
    if found.status == "failed":
        raise Unparsable(f"no order of {count} passages ({found.reason})")
    if problems:
        shown = ", ".join(f"{name.replace('_', ' ')} {number}" for name, number in problems.items())
        raise Unparsable(f"no order of {count} passages ({shown})")
    return found.order


def _of_record(record: Mapping[str, object]) -> str:
    ranking = record["ranking"]
    if isinstance(ranking, str):
        return ranking
    if not isinstance(ranking, list) or not all(isinstance(label, str) for label in ranking):
        raise Unparsable("ranking must be a list of letters")
    return SEPARATOR.join(ranking)


def combine_orders(given: Sequence[int] | None, swapped: Sequence[int] | None) -> Order:
    """Combines orders of the same passages, both in the positions of the given list. One may be None.

    Passages are sorted by the sum of their ranks (Borda); among equal sums, the first answer decides.
    """
    answers = [order for order in (given, swapped) if order is not None]
    ranks = [{place: rank for rank, place in enumerate(order)} for order in answers]
    first = ranks[0]
    ranking = sorted(first, key=lambda place: (sum(rank[place] for rank in ranks), first[place]))
    if len(ranks) == 1:
        return Order(tuple(ranking), None)
    pairs = list(combinations(first, 2))
    alike = sum((ranks[0][a] < ranks[0][b]) == (ranks[1][a] < ranks[1][b]) for a, b in pairs)
    return Order(tuple(ranking), alike / len(pairs))
