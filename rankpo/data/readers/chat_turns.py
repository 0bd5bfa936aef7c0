"""Turns of conversations in records: roles, contents, flags of trained turns, and unknown keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rankpo.data.readers.fields import BadRecord
from rankpo.data.text.conversations import role
from rankpo.types import Turn

Record = Mapping[str, object]

ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value")
# Names of the flag that marks an assistant's turn as trained: OpenAI, Axolotl, ms-swift.
FLAGS = ("weight", "train", "training", "loss")
# rankpo does not pass these keys to templates, so records with them would train on a different conversation.
REFUSED_OF_TURNS = {
    "tool_calls": "write the calls into content as the model writes them",
    "function_call": "write the call into content as the model writes it",
    "reasoning_content": "put it into content as the model writes it, such as <think>…</think>",
    "reasoning": "put it into content as the model writes it, such as <think>…</think>",
    "thinking": "put it into content as the model writes it, such as <think>…</think>",
    "name": "remove it, or put it into content",
    "tool_call_id": "remove it",
    "refusal": "put it into content",
    "audio": "only texts are read",
    "images": "only texts are read",
    "prefix": "let the prompt end with the assistant's turn that is to be continued",
}
REFUSED_OF_RECORDS = ("images", "image", "videos", "audios", "tools", "functions", "chat_template_kwargs")


class Message(NamedTuple):
    """A turn with its flag. trained: the value of the flag, or None if the turn has no flag."""

    turn: Turn
    trained: bool | None


def needed(record: Record, key: str) -> Any:
    """The value of a key. Raises BadRecord, with the found keys, if it is missing, and for images and tools."""
    for refused in REFUSED_OF_RECORDS:
        if record.get(refused):
            raise BadRecord(f"{refused} are not supported")
    if key not in record:
        raise BadRecord(f"no field {key!r} (found: {', '.join(record) or 'nothing'})")
    if record[key] is None:
        raise BadRecord(f"field {key!r} is null")
    return record[key]


def turns(value: object, key: str) -> tuple[Turn, ...]:
    """The turns of a list of {"role", "content"} (or {"from", "value"}), or of one such object; a text is a user's turn.

    Raises BadRecord for any other value.
    """
    return tuple(message.turn for message in flagged(value, key))


def flagged(value: object, key: str) -> tuple[Message, ...]:
    """Like `turns`, with the flag of each turn."""
    if isinstance(value, str):
        return (Message(("user", value), None),)
    if isinstance(value, Mapping):
        return (_message(value, key),)
    if not isinstance(value, list | tuple):
        raise BadRecord(f"{key} must be a list of turns, got {type(value).__name__}")
    if not value:
        raise BadRecord(f"{key} is an empty list; it needs at least one turn")
    return tuple(_message(item, f"{key}[{index}]") for index, item in enumerate(value))


def _message(item: object, place: str) -> Message:
    if not isinstance(item, Mapping):
        raise BadRecord(f"{place} must be an object with role and content, got {type(item).__name__}")
    for refused, remedy in REFUSED_OF_TURNS.items():
        if item.get(refused):
            raise BadRecord(
                f"{place}.{refused} is not supported, because chat templates get role and content only; {remedy}"
            )
    name = next((item[key] for key in ROLE_KEYS if key in item), None)
    content = next((item[key] for key in CONTENT_KEYS if key in item), None)
    if isinstance(content, list):
        content = "".join(_part(part, f"{place}.content[{index}]") for index, part in enumerate(content))
    if not isinstance(name, str) or not isinstance(content, str):
        raise BadRecord(f"{place} must hold a role and a text (found: {', '.join(item)})")
    try:
        return Message((role(name), content), _flag(item, place))
    except BadRecord:
        raise
    except ValueError as error:
        raise BadRecord(f"{place}: {error}") from error


def _part(part: object, place: str) -> str:
    """The text of one part of a content in parts. Raises BadRecord for an image, another part, and a text that is null."""
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise BadRecord(f"{place} must be an object with type and text, got {type(part).__name__}")
    if part.get("type", "text") != "text":
        raise BadRecord(f"{place} has the type {part['type']!r}, but only texts are read")
    if not isinstance(part.get("text"), str):
        raise BadRecord(f"{place} must hold a text under text (found: {', '.join(map(str, part))})")
    return str(part["text"])


def conversation(record: Record, key: str) -> tuple[Message, ...]:
    """The turns of a whole conversation. Raises BadRecord for a text, such as a conversation that is stored as JSON."""
    value = needed(record, key)
    if isinstance(value, str):
        raise BadRecord(f"{key} is a text; it must be a list of turns with role and content, not JSON in a text")
    return flagged(value, key)


def _flag(item: Mapping[str, object], place: str) -> bool | None:
    given = {name: item[name] for name in FLAGS if item.get(name) is not None}
    for name, value in given.items():
        if value not in (0, 1):
            raise BadRecord(f"{place}.{name} is {value!r}; allowed: 0, 1, false, true")
    if len({bool(value) for value in given.values()}) > 1:
        raise BadRecord(f"{place} has {' and '.join(given)}, which contradict each other")
    return bool(next(iter(given.values()))) if given else None


def answer(value: object, key: str) -> str:
    """The content of a single assistant turn, or a plain text. Raises BadRecord, also for a turn that is not trained."""
    if isinstance(value, str):
        return value
    several = flagged(value, key)
    if [message.turn[0] for message in several] != ["assistant"]:
        raise BadRecord(f"{key} must be one assistant turn, got {[message.turn[0] for message in several]}")
    if several[0].trained is False:
        raise BadRecord(f"{key} has a flag that excludes it from training, and the record has no other completion")
    return several[0].turn[1]


def unused_keys(record: Record, used: Sequence[str]) -> Iterator[str]:
    """The keys of a record and of its turns that no reader uses, such as `source` and `messages[].timestamp`."""
    known = {*ROLE_KEYS, *CONTENT_KEYS, *FLAGS, *REFUSED_OF_TURNS}
    for key, value in record.items():
        if key not in used:
            if value is not None and key not in REFUSED_OF_RECORDS:
                yield str(key)
        elif isinstance(value, list | tuple):
            items = [item for item in value if isinstance(item, Mapping)]
            yield from sorted({f"{key}[].{name}" for item in items for name in item if name not in known})
