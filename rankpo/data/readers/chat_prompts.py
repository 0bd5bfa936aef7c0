"""Prompts of chat records, from their keys, from the common prefix of two answers, or from Alpaca's instructions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from rankpo.data.readers.chat_turns import needed, turns
from rankpo.data.readers.fields import BadRecord
from rankpo.types import Turn

Record = Mapping[str, Any]
# Scripts without spaces between words (kana and Chinese characters), where a text can be split after any character.
UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")


def given_prompt(record: Record) -> Any:
    """The prompt of a record, as text or turns; None if it has none."""
    if record.get("prompt") is not None:
        given = record["prompt"]
        return given if isinstance(given, str) else turns(given, "prompt")
    if record.get("instruction") is not None:
        return alpaca_turns(record)
    if record.get("conversations") is not None and not isinstance(record.get("chosen"), list | tuple):
        return system_first(record, turns(record["conversations"], "conversations"))
    return None


def in_front(given: str | tuple[Turn, ...] | None, common: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """The given prompt followed by the common turns of both answers, unless these already begin with it.

    A text is a user's turn. A system turn of either comes first. Raises BadRecord for two different system turns.
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
        end -= 1  # The prefix "bl" of blue and black, or "19" of 1984 and 1912, belongs to the answers.
    prompt = common[:end].rstrip(" ")  # A trailing space belongs to the completions, as tokenizers expect.
    return prompt, (chosen[len(prompt) :], rejected[len(prompt) :])


def _ends_word(text: str, end: int) -> bool:
    """Whether a text can be split at `end` without splitting a word or a number."""
    before, after = text[end - 1], text[end : end + 1]
    return before.isspace() or not after or after.isspace() or bool(UNSPACED.match(before) or UNSPACED.match(after))


def common_turns(chosen: Sequence[Turn], rejected: Sequence[Turn]) -> tuple[tuple[Turn, ...], tuple[str, str]]:
    """The longest common prefix of turns, and the text of the one assistant turn that follows it in each."""
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
    """The turns after a system turn with the record's `system` text, if any. Raises BadRecord for two system turns."""
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


def alpaca_turns(record: Record) -> tuple[Turn, ...]:
    """The turns of an Alpaca record. The user's turn is the instruction and the input, joined by a line break.

    `history` is a list of pairs (question, answer) that come first.
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
