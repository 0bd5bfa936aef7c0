"""Formats of chat and preference records: TRL, messages, ShareGPT, Alpaca, HALOs' JSON, and some hub datasets.

Each format gives a prompt, completions and relevance. A completion is the content of one assistant turn; the prompt is a
text, or all turns before it. Texts keep their white space, since a completion can begin with a space.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rankpo.data.readers.chat_prompts import (
    PROMPT_KEYS,
    alpaca_turns,
    behind_system,
    common_text,
    common_turns,
    given_prompt,
    in_front,
    system_first,
)
from rankpo.data.readers.chat_turns import answer, conversation, flagged, needed, turns
from rankpo.data.readers.fields import BadRecord, number
from rankpo.types import Prompt

Record = Mapping[str, object]


@dataclass(frozen=True)
class Chat:
    """A prompt and its completions, before they have an id. group: records with the same group form one example.

    finished: for each completion, False if it was truncated when it was generated; None means that all are complete.
    place: the position of the trained turn in its conversation, if one record gives several examples.
    """

    prompt: Prompt
    completions: tuple[str, ...]
    relevance: tuple[float, ...]
    group: str | None = None
    finished: tuple[bool, ...] | None = None
    place: int | None = None


def preference(record: Record) -> Chat:
    """TRL's {"prompt"?, "chosen", "rejected"}, each text or turns. A missing prompt is the common prefix of both.

    The prompt can also be named question, query or input, and a `system` text precedes it as the first turn. Alpaca's `instruction` and ShareGPT's `conversations` are also prompts, and their answers are turns.
    """
    chosen, rejected = needed(record, "chosen"), needed(record, "rejected")
    given = given_prompt(record)
    _alike({"chosen": chosen, "rejected": rejected})
    if chosen == rejected:
        raise BadRecord("chosen and rejected are equal")
    if isinstance(chosen, str) and isinstance(given, tuple):
        return Chat(given, _completions((chosen, rejected)), (1.0, 0.0))
    if isinstance(chosen, str):
        prompt, texts = common_text(chosen, rejected) if given is None else (given, (chosen, rejected))
        return Chat(_prompt(prompt), _completions(texts), (1.0, 0.0))
    several = [flagged(value, key) for key, value in (("chosen", chosen), ("rejected", rejected))]
    for key, messages_of in zip(("chosen", "rejected"), several, strict=True):
        if messages_of[-1].trained is False:
            raise BadRecord(
                f"{key} ends with a turn whose flag excludes it from training, and a pair trains both answers"
            )
    common, last = common_turns(*(tuple(message.turn for message in messages_of) for messages_of in several))
    common = in_front(given, common)
    if not common:
        raise BadRecord("chosen and rejected have no common first turn, and the record has no prompt")
    return Chat(common, _completions(last), (1.0, 0.0))


def completion(record: Record) -> Chat | None:
    """TRL's {"prompt", "completion", "label"?}, texts or turns. Without a label, the completion is desirable.

    Returns None if the flag of the completion excludes it from training.
    """
    given, written = needed(record, "prompt"), needed(record, "completion")
    _alike({"prompt": given, "completion": written})
    relevance = _label(record["label"]) if "label" in record else 1.0
    finished = _finished(record, "finished")
    if isinstance(written, str):
        return Chat(behind_system(record, _prompt(given)), _completions([written]), (relevance,), finished=finished)
    several = flagged(written, "completion")
    if [message.trained for message in several] == [False]:
        return None
    return Chat(
        behind_system(record, turns(given, "prompt")),
        _completions([answer(written, "completion")]),
        (relevance,),
        finished=finished,
    )


def messages(record: Record) -> Chat | None:
    """The last of `trained_turns`, or None if there is none. {"text"} is a completion with an empty prompt."""
    if "messages" not in record and "conversations" not in record:
        return Chat("", _completions([needed(record, "text")]), (1.0,))
    return next(iter(trained_turns(record, "last")), None)


def trained_turns(record: Record, which: str) -> list[Chat]:
    """Examples of {"messages": turns} or ShareGPT's {"conversations": turns, "system"?}, one for each trained turn.

    which: "all" turns of the assistant, or the "last" one. Turns whose flag (weight 0, train false) excludes them, and a
    turn without a preceding one, give no example.
    """
    key = "messages" if record.get("messages") is not None else "conversations"
    several = conversation(record, key)
    names = [message.turn[0] for message in several]
    if names[-1] != "assistant" or len(several) < 2:
        raise BadRecord(f"{key} must end with an assistant turn that follows another turn, got {names}")
    trained = [
        place
        for place, message in enumerate(several)
        if place and message.turn[0] == "assistant" and message.trained is not False
    ]
    found = []
    for place in trained if which == "all" else trained[-1:]:
        before = system_first(record, tuple(earlier.turn for earlier in several[:place]))
        own = place if which == "all" else None
        found.append(Chat(before, _completions([several[place].turn[1]]), (1.0,), place=own))
    return found


def alpaca(record: Record) -> Chat:
    """Alpaca's {"instruction", "input"?, "output", "system"?, "history"?}, as turns."""
    return Chat(alpaca_turns(record), _completions([needed(record, "output")]), (1.0,))


def halos(record: Record) -> Chat:
    """HALOs' {"type": "pairwise_feedback" | "binary_feedback" | "scalar_feedback", "prompt": turns, …}."""
    given = needed(record, "prompt")
    prompt = given if isinstance(given, str) else turns(given, "prompt")  # task=sample writes a plain text as it is.
    kind = needed(record, "type")
    if kind == "pairwise_feedback":
        outputs = [answer(needed(record, f"output_{letter}"), f"output_{letter}") for letter in "AB"]
        if outputs[0] == outputs[1]:
            raise BadRecord("output_A and output_B are equal")
        finished = [_finished(record, f"finished_{letter}") or (True,) for letter in "AB"]
        order = (0, 1) if _label(needed(record, "label")) else (1, 0)
        texts = _completions([outputs[index] for index in order])
        whole = tuple(finished[index][0] for index in order)
        return Chat(prompt, texts, (1.0, 0.0), finished=None if all(whole) else whole)
    if kind == "sample":
        raise BadRecord("type is sample, a completion without a judgement; judge it with task=annotate first")
    if kind not in ("binary_feedback", "scalar_feedback"):
        raise BadRecord(f"type is {kind!r}; allowed: pairwise_feedback, binary_feedback, scalar_feedback")
    output = _completions([answer(needed(record, "output"), "output")])
    if kind == "binary_feedback":
        return Chat(prompt, output, (_label(needed(record, "label")),), finished=_finished(record, "finished"))
    reward = number(needed(record, "reward"), "reward")
    group = str(needed(record, "prompt_id"))
    return Chat(prompt, output, (reward,), group=group, finished=_finished(record, "finished"))


def _finished(record: Record, key: str) -> tuple[bool] | None:
    """Returns (False,) for a completion that was truncated when it was generated."""
    value = record.get(key)
    if value not in (None, True, False):
        raise BadRecord(f"{key} is {value!r}; allowed: true, false")
    return (False,) if value is False else None


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
    """stanfordnlp/SHP: the answer with the larger score is chosen. Returns None if the score ratio is below 2.

    The data card recommends a score ratio of at least 2, and at most five pairs for each post.
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
    """stanfordnlp/imdb: the first words of a review are the prompt, the rest is a completion, desirable if positive."""
    words = re.findall(r"\S+\s*", needed(record, "text"))
    if len(words) <= prompt_words:
        raise BadRecord(f"text has {len(words)} words, and the prompt needs {prompt_words} of them")
    prompt = "".join(words[:prompt_words])
    text = "".join(words)
    kept = prompt.rstrip()
    return Chat(kept, _completions([text[len(kept) :]]), (_label(needed(record, "label")),))


def _prompt(value: object) -> str:
    if not isinstance(value, str):
        raise BadRecord(f"prompt must be a text like the completions, got {type(value).__name__}")
    return value


def _completions(texts: Sequence[str]) -> tuple[str, ...]:
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise BadRecord("a completion is empty")
    return tuple(texts)


def _alike(values: Mapping[str, object]) -> None:
    """Raises BadRecord unless all values are texts or all are turns, which are a list or one object."""
    kinds = {key: "a text" if isinstance(value, str) else "turns" for key, value in values.items()}
    for key, value in values.items():
        if not isinstance(value, str | Mapping) and not (isinstance(value, list | tuple) and value):
            what = "an empty list" if isinstance(value, list | tuple) else type(value).__name__
            raise BadRecord(f"{key} is {what}; allowed: a text, or a list of turns")
    if len(set(kinds.values())) > 1:
        found = ", ".join(
            f"{key} is {what}" if what == "a text" else f"{key} has {what}" for key, what in kinds.items()
        )
        raise BadRecord(f"{' and '.join(values)} must both be texts or both be lists of turns, but {found}")


def _label(value: object) -> float:
    """1 or 0. Tables have only texts, so the texts of these values are read too."""
    read = LABELS.get(value.strip().lower()) if isinstance(value, str) else value
    if read not in (0, 1):
        raise BadRecord(f"label is {value!r}; allowed: true, false, 1, 0")
    return float(read)


LABELS = {"true": 1, "false": 0, "1": 1, "0": 0, "1.0": 1, "0.0": 0}  # Labels in tables.
FORMATS: dict[str, Callable[[Record], Chat | None]] = {
    "trl_preference": preference,
    "trl_completion": completion,
    "messages": messages,
    "alpaca": alpaca,
    "halos": halos,
    "hh": hh,
    "shp": shp,
    "imdb": imdb,
}
# The keys that identify a format, the most specific first. The yaml of a hub dataset names its format.
KEYS: dict[str, tuple[str, ...]] = {
    "halos": ("type", "prompt"),
    "trl_preference": ("chosen", "rejected"),
    "trl_completion": ("prompt", "completion"),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
}
NAMES = {"sharegpt": "messages"}  # The format that reads these keys.
ALPACA_KEYS = ("instruction", "input", "system", "history")
# The keys that each format reads, and `split`, which selects records.
USED: dict[str, tuple[str, ...]] = {
    "trl_preference": (*PROMPT_KEYS, "chosen", "rejected", "conversations", *ALPACA_KEYS),
    "trl_completion": ("prompt", "completion", "label", "finished", "system"),
    "messages": ("messages", "conversations", "system", "text"),
    "alpaca": (*ALPACA_KEYS, "output"),
    "halos": (
        *("type", "prompt", "prompt_id", "output", "output_A", "output_B", "label", "reward"),
        *("finished", "finished_A", "finished_B"),
    ),
}


def detect(record: Record) -> str:
    """The format of a file by the keys of its first record. Raises BadRecord if no format matches."""
    for name, keys in KEYS.items():
        if all(key in record for key in keys):
            return NAMES.get(name, name)
    if "text" in record:
        return "messages"
    known = "; ".join(f"{name}: {', '.join(keys)}" for name, keys in KEYS.items())
    raise BadRecord(f"no chat format has these keys (found: {', '.join(record)}). Known: {known}; messages: text")
