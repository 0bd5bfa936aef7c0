"""OpenAssistant's trees of messages as preferences between human-ranked replies to one message."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

from rankpo.data.readers.chat_formats import Chat
from rankpo.data.readers.chat_turns import needed
from rankpo.data.text.conversations import role
from rankpo.types import Turn


def ranked_replies(
    records: Iterable[tuple[str, Mapping[str, Any]]], language: str = "en"
) -> Iterator[tuple[str, Chat]]:
    """Yields (place, chat) for each two replies with adjacent ranks, the better one first, in the order of the file.

    records: (place, message) with message_id, parent_id, text, role, lang and rank (0 is best, None means unranked).
    All messages are held in memory, because the parents of a message can be anywhere in the file.
    """
    of_id: dict[str, Mapping[str, object]] = {}
    replies: dict[str, list[tuple[int, str, str]]] = {}
    for place, record in records:
        if needed(record, "lang") != language:
            continue
        of_id[needed(record, "message_id")] = record
        parent, rank = record.get("parent_id"), record.get("rank")
        if parent is not None and rank is not None and role(needed(record, "role")) == "assistant":
            replies.setdefault(parent, []).append((int(rank), place, needed(record, "text")))
    for parent, several in replies.items():
        turns = _path(parent, of_id)
        several.sort()
        for (_, place, better), (_, _, worse) in pairwise(several):
            if turns and better != worse:
                yield place, Chat(turns, (better, worse), (1.0, 0.0))


def _path(message: str, of_id: Mapping[str, Mapping[str, Any]]) -> tuple[Turn, ...]:
    """The turns from the root to a message; empty if a parent is missing (another language, or removed)."""
    turns: list[Turn] = []
    current: str | None = message
    while current is not None:
        record = of_id.get(current)
        if record is None:
            return ()
        turns.append((role(record["role"]), record["text"]))
        current = record.get("parent_id")
    return tuple(reversed(turns))
