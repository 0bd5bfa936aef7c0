"""Extraction of the prompts of chat records.

A prompt comes from the keys of a record, from the common prefix of its two answers, or from an Alpaca instruction.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from rankpo.data.readers.chat_turns import needed, turns
from rankpo.data.readers.fields import BadRecord
from rankpo.types import Turn

Record = Mapping[str, Any]
# Kana and Chinese characters. These scripts have no spaces between words, so a text can be split beside any of them.
UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")


PROMPT_KEYS = ("prompt", "question", "query", "input")  # Names of the prompt, in the order in which they are tried.


def given_prompt(record: Record) -> Any:
    """Returns the prompt of a record as text or as turns, or None if the record has no prompt."""
    if record.get("prompt") is None and record.get("instruction") is not None:
        return alpaca_turns(record)
    for key in PROMPT_KEYS:
        if (given := record.get(key)) is not None:
            return behind_system(record, given if isinstance(given, str) else turns(given, key))
    if record.get("conversations") is not None and not isinstance(record.get("chosen"), list | tuple):
        return system_first(record, turns(record["conversations"], "conversations"))
    return None


def in_front(given: str | tuple[Turn, ...] | None, common: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """Returns the turns of the given prompt, followed by the common turns of both answers.

    If the common turns already begin with the prompt, the result contains it only once. A prompt given as text becomes
    a user turn. The system turn of the prompt or of the common turns comes first. Raises BadRecord if both have a
    system turn and the two differ.
    """
    if not given:
        return common
    asked: tuple[Turn, ...] = (("user", given),) if isinstance(given, str) else given
    (system, asked), (own, shared) = _system_apart(asked), _system_apart(common)
    if own and system and own != system:
        raise BadRecord("the prompt and the common turns of chosen and rejected begin with different system turns")
    begins = [_trimmed(turn) for turn in shared[: len(asked)]] == [_trimmed(turn) for turn in asked]
    return (*(system or own), *(shared if begins else (*asked, *shared)))


def _trimmed(turn: Turn) -> Turn:
    return (turn[0], turn[1].strip())


def _system_apart(several: tuple[Turn, ...]) -> tuple[tuple[Turn, ...], tuple[Turn, ...]]:
    """Returns the leading system turns (none or one) and the other turns."""
    count = int(bool(several) and several[0][0] == "system")
    return several[:count], several[count:]


def common_text(chosen: str, rejected: str) -> tuple[str, tuple[str, str]]:
    """Returns the common prefix of both texts, up to a word boundary, and the two remainders."""
    common = "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False)))
    if common in (chosen, rejected):
        raise BadRecord("one of chosen and rejected is a prefix of the other, so the end of the prompt is unknown")
    end = len(common)
    while end and not (_ends_word(chosen, end) and _ends_word(rejected, end)):
        end -= 1  # The answers keep a partial word, such as "bl" of blue and black, or "19" of 1984 and 1912.
    prompt = common[:end].rstrip(" ")  # Tokenizers join a space to the word that follows it.
    return prompt, (chosen[len(prompt) :], rejected[len(prompt) :])


def _ends_word(text: str, end: int) -> bool:
    """Whether a text can be split at `end` without splitting a word or a number."""
    before, after = text[end - 1], text[end : end + 1]
    return before.isspace() or not after or after.isspace() or bool(UNSPACED.match(before) or UNSPACED.match(after))


def common_turns(chosen: Sequence[Turn], rejected: Sequence[Turn]) -> tuple[tuple[Turn, ...], tuple[str, str]]:
    """Returns the longest common prefix of both conversations, and the two texts of the assistant turns after it.

    Raises BadRecord unless exactly one assistant turn follows the prefix in each conversation.
    """
    count = 0
    while count < min(len(chosen), len(rejected)) and chosen[count] == rejected[count]:
        count += 1
    rest = chosen[count:], rejected[count:]
    for key, left in zip(("chosen", "rejected"), rest, strict=True):
        if [name for name, _ in left] != ["assistant"]:
            found = ", ".join(name for name, _ in left) or "nothing"
            raise BadRecord(f"{key} must have exactly one assistant turn after the common turns, got {found}")
    return tuple(chosen[:count]), (rest[0][0][1], rest[1][0][1])


def system_first(record: Record, several: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """Inserts the record's `system` text, if any, as a system turn before the other turns.

    Raises BadRecord if the turns already begin with a different system turn.
    """
    system = record.get("system")
    if not system:
        return several
    if not isinstance(system, str):
        raise BadRecord(f"system must be a text, got {type(system).__name__}")
    if several[0] == ("system", system):
        return several
    if several[0][0] == "system":
        raise BadRecord("system and the first turn are two system prompts; remove one of them")
    return (("system", system), *several)


def behind_system(record: Record, given: str | tuple[Turn, ...]) -> str | tuple[Turn, ...]:
    """Returns a prompt behind the record's `system` text; a prompt that is a text then becomes a user turn.

    Without a system text, the prompt is unchanged.
    """
    if not record.get("system"):
        return given
    return system_first(record, (("user", given),) if isinstance(given, str) else given)


def alpaca_turns(record: Record) -> tuple[Turn, ...]:
    """Returns the turns of an Alpaca record. The last user turn joins the instruction and the input with a line break.

    The (question, answer) pairs of the record's `history` become the turns before it.
    """
    parts = [needed(record, "instruction"), record.get("input") or ""]
    if not all(isinstance(part, str) for part in parts):
        raise BadRecord("instruction and input must be texts")
    earlier: list[Turn] = []
    for index, pair in enumerate(record.get("history") or ()):
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise BadRecord(f"history[{index}] must be a question and an answer")
        earlier += [("user", pair[0]), ("assistant", pair[1])]
    return system_first(record, (*earlier, ("user", "\n".join(filter(None, parts)))))
