"""RankLLM's training conversations as lists, and lists as conversations."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rankpo.data.readers.fields import BadRecord
from rankpo.data.text.conversations import role
from rankpo.data.text.identifiers import Identifiers, labels_of_scheme
from rankpo.data.text.permutations import parse
from rankpo.data.text.prompt_templates import Place, PromptTemplate

FIRST = re.compile(r"^\[(1|A)\] ?(.*)$")
# the line behind the passages that repeats the query: RankLLM's, which ends in a full stop of its own, and ours
SEARCH_QUERY, QUERY = re.compile(r"^Search Query: (.*)\.$"), re.compile(r"^Query: (.*)$")
INTRODUCED = re.compile(r"search query: (.*)\.$")


@dataclass(frozen=True)
class RankedRecord:
    """ranking: positions in `passages`, best first; partial, or empty where `scores` [n] stand in its place."""

    query: str
    passages: tuple[str, ...]
    ranking: tuple[int, ...]
    scores: tuple[float, ...] | None = None


def written(scheme: str, count: int) -> Identifiers:
    """The identifiers of an answer as text; no tokenizer is asked."""
    return Identifiers(scheme, labels_of_scheme(scheme, count), "[", "]", " > ", (), (), (), (), (), True)


def from_conversation(record: Mapping[str, Any]) -> RankedRecord:
    """The list of a conversation. Raises BadRecord unless its answer is a whole permutation of its passages."""
    turns = _turns(record["conversations"])
    for name in ("user", "assistant"):
        if name not in turns:
            raise BadRecord(f"no turn of the {'human' if name == 'user' else 'gpt'} (found: {', '.join(turns)})")
    scheme, before, passages, after = _split(turns["user"])
    query = _query(before, after)
    identifiers = written(scheme, len(passages))
    answer = turns["assistant"].strip()
    found = parse(answer, len(passages), identifiers)
    if found.status != "ok":
        what = found.reason or ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in found.repairs.items())
        raise BadRecord(f"the answer is no permutation of {len(passages)} passages ({what}): {answer[:80]!r}")
    if re.sub(r"\s*>\s*", " > ", answer) != identifiers.text(found.order):
        raise BadRecord(f"the answer holds more than identifiers: {answer[:80]!r}")
    return RankedRecord(query, tuple(passages), found.order)


def _turns(conversation: Any) -> dict[str, str]:
    """Contents by role; turns are found by name, not by place. Raises BadRecord for a turn that is none."""
    if not isinstance(conversation, Sequence) or isinstance(conversation, str):
        raise BadRecord(f"conversations must be a list of turns, got {type(conversation).__name__}")
    turns: dict[str, str] = {}
    for index, turn in enumerate(conversation):
        if not isinstance(turn, Mapping):
            raise BadRecord(f"conversations[{index}] must be an object, got {type(turn).__name__}")
        name, content = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        if not isinstance(name, str) or not isinstance(content, str):
            raise BadRecord(
                f"conversations[{index}] needs from and value, or role and content (found: {', '.join(turn)})"
            )
        try:
            known = role(name)
        except ValueError as error:
            raise BadRecord(f"conversations[{index}]: {error}") from error
        if known in turns:
            raise BadRecord(f"conversations[{index}]: a second turn of the {name}; only single-turn prompts are lists")
        turns[known] = content
    return turns


def _split(prompt: str) -> tuple[str, list[str], list[str], list[str]]:
    """(scheme, lines before, passages, lines after); a passage may have several lines.

    Raises BadRecord for a prompt with fewer than two passages, or without a line that repeats the query.
    """
    before: list[str] = []
    passages: list[list[str]] = []
    after: list[str] = []
    scheme = ""
    for line in prompt.split("\n"):
        if not passages:
            match = FIRST.match(line)
            if match is None:
                before.append(line)
                continue
            scheme = "numbers" if match.group(1) == "1" else "letters"
            passages.append([match.group(2)])
        elif after or SEARCH_QUERY.match(line) or QUERY.match(line):
            after.append(line)
        else:
            label = str(len(passages) + 1) if scheme == "numbers" else chr(ord("A") + len(passages))
            if line.startswith(f"[{label}]"):
                passages.append([line.removeprefix(f"[{label}]").removeprefix(" ")])
            else:
                passages[-1].append(line)
    if len(passages) < 2:
        raise BadRecord("the prompt shows fewer than two passages behind [1], [2], … or [A], [B], …")
    if not after:
        raise BadRecord("no line 'Search Query: ….' or 'Query: …' stands behind the passages")
    texts = ["\n".join(lines).strip() for lines in passages]
    if not all(texts):
        raise BadRecord(f"passage {texts.index('') + 1} is empty")
    return scheme, before, texts, after


def _query(before: Sequence[str], after: Sequence[str]) -> str:
    match = SEARCH_QUERY.match(after[0]) or QUERY.match(after[0])
    assert match is not None, "the lines behind the passages begin with the query's"
    query = match.group(1).strip()
    introduced = [found.group(1).strip() for line in before if (found := INTRODUCED.search(line))]
    if introduced and introduced[0] != query:
        raise BadRecord(f"the introduction asks for {introduced[0]!r}, the line behind the passages for {query!r}")
    if not query:
        raise BadRecord("the query is empty")
    return query


def to_conversation(record: RankedRecord, template: PromptTemplate, scheme: str) -> list[dict[str, str]]:
    """The turns that show a list and its full ranking under letters or numbers; `from_conversation` reads them back."""
    identifiers = written(scheme, len(record.passages))
    labels = identifiers.labels
    content = template.content(labels, [f"[{label}]" for label in labels])
    passages = iter(record.passages)
    parts = [
        part if isinstance(part, str) else record.query if part == Place("query") else next(passages)
        for part in content
    ]
    system = [] if template.system is None else [{"from": "system", "value": template.system}]
    answer = identifiers.text(record.ranking)
    return [*system, {"from": "human", "value": "".join(parts)}, {"from": "gpt", "value": answer}]
