"""Estimate of a judge's calls and costs before the first call."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from rankpo.data.text.conversations import plain_text
from rankpo.judges.base import Judge
from rankpo.judges.costs import cost
from rankpo.judges.pairs import Pair
from rankpo.types import Prompt

SHOWN_PROMPTS = 3
CHARACTERS_PER_TOKEN = 4  # A common estimate for English; servers report exact counts later.


def estimate(
    judge: Judge,
    drawn: Sequence[Pair],
    queries: Mapping[str, Prompt],
    texts: Mapping[str, str],
    calls_per_pair: int,
    say: Callable[[str], None],
) -> dict[str, object]:
    """Returns counts of pairs, calls and prompt tokens, with dollars if the judge has a price; prints some prompts."""
    requests = [judge.request(queries[pair.query_id], texts[pair.id1], texts[pair.id2]) for pair in drawn]
    characters = sum(len(json.dumps(request, ensure_ascii=False)) for request in requests)
    tokens = round(characters / CHARACTERS_PER_TOKEN * calls_per_pair)
    row: dict[str, object] = {"pairs": len(drawn), "calls": len(drawn) * calls_per_pair, "prompt tokens, about": tokens}
    if judge.price:
        row["dollars for prompts, about"] = round(cost({"prompt_tokens": tokens}, judge.price), 4)
    for request in requests[:SHOWN_PROMPTS]:
        say(json.dumps(request, indent=1, ensure_ascii=False))
    return row


def say_cut(
    judge: Judge,
    drawn: Sequence[Pair],
    queries: Mapping[str, Prompt],
    texts: Mapping[str, str],
    say: Callable[[str], None],
) -> None:
    """Reports how many queries and passages are truncated in the judge's prompt."""

    asked = {plain_text(queries[pair.query_id]) for pair in drawn}
    shown = {texts[identity] for pair in drawn for identity in (pair.id1, pair.id2)}
    cut = judge.count_cut(*asked), judge.count_cut(*shown)
    if any(cut):
        say(
            f"{cut[0]} of {len(asked)} queries and {cut[1]} of {len(shown)} passages are longer than "
            "judge.template.max_characters, and are cut there"
        )
