"""Estimate of a judge's calls and costs before the first call."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence

from rankpo.judges.base import Judge
from rankpo.judges.costs import cost

SHOWN_PROMPTS = 3
CHARACTERS_PER_TOKEN = 4  # A common estimate for English; servers report exact counts later.


def estimate(
    judge: Judge,
    items: str,
    requests: Sequence[Mapping[str, object]],
    calls_per_item: int,
    say: Callable[[str], None],
) -> dict[str, object]:
    """Returns counts of items, calls and prompt tokens, with dollars if the judge has a price; prints some prompts.

    items: the name of what is judged, pairs or lists; each has one of the requests.
    """
    characters = sum(len(json.dumps(request, ensure_ascii=False)) for request in requests)
    tokens = round(characters / CHARACTERS_PER_TOKEN * calls_per_item)
    row: dict[str, object] = {items: len(requests), "calls": len(requests) * calls_per_item}
    row["prompt tokens, about"] = tokens
    if judge.price:
        row["dollars for prompts, about"] = round(cost({"prompt_tokens": tokens}, judge.price), 4)
    for request in requests[:SHOWN_PROMPTS]:
        say(json.dumps(request, indent=1, ensure_ascii=False))
    return row


def say_cut(
    count: Callable[[Collection[str]], int],
    queries: Collection[str],
    passages: Collection[str],
    say: Callable[[str], None],
) -> None:
    """Reports how many queries and passages are truncated in the judge's prompt. count: of the texts that are."""
    cut = count(queries), count(passages)
    if any(cut):
        say(
            f"{cut[0]} of {len(queries)} queries and {cut[1]} of {len(passages)} passages are longer than the template's "
            "max_characters, and are cut there"
        )
