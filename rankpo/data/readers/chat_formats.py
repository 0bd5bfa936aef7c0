"""Chat and preference records as prompt, completions and relevance: TRL's forms, messages, HALOs' JSON, and hub sets.

interop.md sections 1.4 and 1.5. A completion is one assistant turn's content; the prompt is text, or all turns before.
Texts keep their white space: a completion may begin with a blank.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from rankpo.data.readers.fields import BadRecord, number
from rankpo.data.text.conversations import role
from rankpo.types import Prompt, Turn

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Chat:
    """A prompt and its completions, before they have an id. group: records of equal group are one example."""

    prompt: Prompt
    completions: tuple[str, ...]
    relevance: tuple[float, ...]
    group: str | None = None


def preference(record: Record) -> Chat:
    """TRL's {"prompt"?, "chosen", "rejected"}, each text or turns; without a prompt it is what both begin with."""
    chosen, rejected = needed(record, "chosen"), needed(record, "rejected")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise BadRecord("chosen and rejected must both be texts or both be lists of turns")
    if chosen == rejected:
        raise BadRecord("chosen and rejected are equal")
    given = record.get("prompt")
    if isinstance(chosen, str):
        prompt, texts = _common_text(chosen, rejected) if given is None else (given, (chosen, rejected))
        return Chat(_prompt(prompt), _completions(texts), (1.0, 0.0))
    common, last = _common_turns(turns(chosen, "chosen"), turns(rejected, "rejected"))
    if given is not None and not any(name == "user" for name, _ in common):
        start = ((("user", given),) if isinstance(given, str) else turns(given, "prompt")) if given else ()
        common = (*start, *common)  # turns that both share already hold the prompt, and are not repeated
    if not common:
        raise BadRecord("chosen and rejected share no first turn, and there is no prompt")
    return Chat(common, _completions(last), (1.0, 0.0))


def _common_text(chosen: str, rejected: str) -> tuple[str, tuple[str, str]]:
    common = "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False)))
    if common in (chosen, rejected):
        raise BadRecord("one of chosen and rejected begins with the whole other: where the prompt ends is unknown")
    prompt = common.rstrip(" ")  # a blank at its end belongs to the completions, as their tokenizers expect
    return prompt, (chosen[len(prompt) :], rejected[len(prompt) :])


def _common_turns(chosen: Sequence[Turn], rejected: Sequence[Turn]) -> tuple[tuple[Turn, ...], tuple[str, str]]:
    """The longest common run of turns, and what follows it: one assistant turn in each."""
    count = 0
    while count < min(len(chosen), len(rejected)) and chosen[count] == rejected[count]:
        count += 1
    rest = chosen[count:], rejected[count:]
    for key, left in zip(("chosen", "rejected"), rest, strict=True):
        if [name for name, _ in left] != ["assistant"]:
            found = ", ".join(name for name, _ in left) or "nothing"
            raise BadRecord(f"{key} must go on with one assistant turn after the common turns, got {found}")
    return tuple(chosen[:count]), (rest[0][0][1], rest[1][0][1])


def completion(record: Record) -> Chat:
    """TRL's {"prompt", "completion", "label"?}, texts or turns; without a label the completion is desirable."""
    given, answer = needed(record, "prompt"), needed(record, "completion")
    if isinstance(given, str) != isinstance(answer, str):
        raise BadRecord("prompt and completion must both be texts or both be lists of turns")
    relevance = _label(record["label"]) if "label" in record else 1.0
    if isinstance(answer, str):
        return Chat(_prompt(given), _completions([answer]), (relevance,))
    return Chat(turns(given, "prompt"), _completions([_answer(answer, "completion")]), (relevance,))


def messages(record: Record) -> Chat:
    """{"messages": turns}: the last one, an assistant's, is the completion; or {"text"}: a completion of nothing."""
    if "messages" not in record:
        return Chat("", _completions([needed(record, "text")]), (1.0,))
    several = turns(record["messages"], "messages")
    if several[-1][0] != "assistant" or len(several) < 2:
        raise BadRecord(f"messages must end with an assistant turn behind another, got {[name for name, _ in several]}")
    return Chat(several[:-1], _completions([several[-1][1]]), (1.0,))


def halos(record: Record) -> Chat:
    """HALOs' {"type": "pairwise_feedback" | "binary_feedback" | "scalar_feedback", "prompt": turns, …}."""
    given = needed(record, "prompt")
    prompt = given if isinstance(given, str) else turns(given, "prompt")  # task=sample leaves plain texts plain
    kind = needed(record, "type")
    if kind == "pairwise_feedback":
        outputs = [_answer(needed(record, f"output_{letter}"), f"output_{letter}") for letter in "AB"]
        if outputs[0] == outputs[1]:
            raise BadRecord("output_A and output_B are equal")
        if _label(needed(record, "label")) == 0:
            outputs.reverse()
        return Chat(prompt, _completions(outputs), (1.0, 0.0))
    if kind == "sample":
        raise BadRecord("type is sample: a completion without judgement; judge it first, with task=annotate")
    if kind not in ("binary_feedback", "scalar_feedback"):
        raise BadRecord(f"type is {kind!r}; allowed: pairwise_feedback, binary_feedback, scalar_feedback")
    output = _completions([_answer(needed(record, "output"), "output")])
    if kind == "binary_feedback":
        return Chat(prompt, output, (_label(needed(record, "label")),))
    reward = number(needed(record, "reward"), "reward")
    return Chat(prompt, output, (reward,), group=str(needed(record, "prompt_id")))


def hh(record: Record) -> Chat:
    """Anthropic/hh-rlhf: {"chosen", "rejected"}, texts with the markers `Human:` and `Assistant:`."""
    return preference({key: _marked_turns(needed(record, key), key) for key in ("chosen", "rejected")})


def _marked_turns(text: str, key: str) -> list[dict[str, str]]:
    parts = re.split(r"\n\n(Human|Assistant): ?", text)
    if parts[0].strip() or len(parts) < 3:
        raise BadRecord(f"{key} does not begin with a Human or Assistant marker")
    names = {"Human": "user", "Assistant": "assistant"}
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    return [{"role": names[name], "content": content.strip()} for name, content in pairs]


def shp(record: Record) -> Chat | None:
    """stanfordnlp/SHP: the answer with the larger score is chosen; None where it is not twice the other's.

    The data card's advice for training: score ratio of 2, at most five pairs of a post.
    """
    scores = [needed(record, f"score_{letter}") for letter in "AB"]
    if max(scores) < 2 * min(scores) or scores[0] == scores[1]:
        return None
    answers = [needed(record, f"human_ref_{letter}").strip() for letter in "AB"]
    if _label(needed(record, "labels")) == 0:
        answers.reverse()
    post = needed(record, "history").strip()
    return Chat((("user", post),), _completions(answers), (1.0, 0.0))


def imdb(record: Record, prompt_words: int = 8) -> Chat:
    """stanfordnlp/imdb: a review's first words are the prompt, the rest a completion, desirable where it is positive."""
    words = re.findall(r"\S+\s*", needed(record, "text"))
    if len(words) <= prompt_words:
        raise BadRecord(f"text has {len(words)} words, of which {prompt_words} would be the prompt")
    prompt = "".join(words[:prompt_words])
    text = "".join(words)
    kept = prompt.rstrip()
    return Chat(kept, _completions([text[len(kept) :]]), (_label(needed(record, "label")),))


def needed(record: Record, key: str) -> Any:
    """The value of a key. Raises BadRecord naming the found ones; and for images, which no model here reads."""
    for refused in ("images", "image", "tools"):
        if record.get(refused):
            raise BadRecord(f"{refused} are not supported")
    if record.get(key) is None:
        raise BadRecord(f"no field {key!r} (found: {', '.join(record) or 'nothing'})")
    return record[key]


def turns(value: Any, key: str) -> tuple[Turn, ...]:
    """A list of {"role", "content"} (or {"from", "value"}) as turns. Raises BadRecord."""
    if isinstance(value, str):
        return (("user", value),)
    if not isinstance(value, list | tuple) or not value:
        raise BadRecord(f"{key} must be a list of turns, got {type(value).__name__}")
    return tuple(_turn(item, f"{key}[{index}]") for index, item in enumerate(value))


def _turn(item: Any, place: str) -> Turn:
    if not isinstance(item, Mapping):
        raise BadRecord(f"{place} must be an object with role and content, got {type(item).__name__}")
    name, content = item.get("role", item.get("from")), item.get("content", item.get("value"))
    if isinstance(content, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(name, str) or not isinstance(content, str):
        raise BadRecord(f"{place} must hold a role and a text (found: {', '.join(item)})")
    try:
        return role(name), content
    except ValueError as error:
        raise BadRecord(f"{place}: {error}") from error


def _answer(value: Any, key: str) -> str:
    """The content of a lone assistant turn; a plain text is one."""
    if isinstance(value, str):
        return value
    several = turns(value, key)
    if [name for name, _ in several] != ["assistant"]:
        raise BadRecord(f"{key} must be one assistant turn, got {[name for name, _ in several]}")
    return several[0][1]


def _prompt(value: Any) -> str:
    if not isinstance(value, str):
        raise BadRecord(f"prompt must be a text as the completions are, got {type(value).__name__}")
    return value


def _completions(texts: Sequence[str]) -> tuple[str, ...]:
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise BadRecord("a completion is empty")
    return tuple(texts)


def _label(value: Any) -> float:
    if value not in (0, 1, True, False):
        raise BadRecord(f"label is {value!r}; allowed: true, false, 1, 0")
    return float(value)


FORMATS: dict[str, Callable[[Record], Chat | None]] = {
    "trl_preference": preference,
    "trl_completion": completion,
    "messages": messages,
    "halos": halos,
    "hh": hh,
    "shp": shp,
    "imdb": imdb,
}
# the keys that decide, most telling first; hub sets are named by their yaml
KEYS: dict[str, tuple[str, ...]] = {
    "halos": ("type", "prompt"),
    "trl_preference": ("chosen", "rejected"),
    "trl_completion": ("prompt", "completion"),
    "messages": ("messages",),
}


def detect(record: Record) -> str:
    """The format of a file by the keys of its first record. Raises BadRecord where none fits."""
    for name, keys in KEYS.items():
        if all(key in record for key in keys):
            return name
    if "text" in record:
        return "messages"
    known = "; ".join(f"{name}: {', '.join(keys)}" for name, keys in KEYS.items())
    raise BadRecord(f"no chat format has these keys (found: {', '.join(record)}). Known: {known}; messages: text")
