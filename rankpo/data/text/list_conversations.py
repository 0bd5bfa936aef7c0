"""Conversion between RankLLM's training conversations and ranked lists, in both directions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rankpo.data.readers.fields import BadRecord
from rankpo.data.text.conversations import role
from rankpo.data.text.identifiers import Identifiers, labels_of_scheme
from rankpo.data.text.permutations import parse
from rankpo.data.text.prompt_templates import Place, PromptTemplate

# A prompt states the query twice: before the passages and after them. Each form is (the text before the first query,
# the text before the repeated query, the text after both). The first form is RankLLM's, the second is that of our
# templates.
FORMS = (("search query: ", "Search Query: ", "."), ("this query: ", "Query: ", ""))
REPEATED = re.compile(r"^(?:Search Query: (?P<ranked>.*)\.|Query: (?P<plain>.*))$", re.MULTILINE)
FIRST = re.compile(r"^\[([1A])\]", re.MULTILINE)
STATED = re.compile(r"\b(?:with|are) (\d{1,6}) passages\b")
# Matches a line inside a passage that looks like the label of another passage. The writer puts one more blank before
# such a line, and the reader removes it, so that only real labels start a line.
LOOKS_LIKE_LABEL = re.compile(r"^( *\[(?:\d+|[A-Z])\])", re.MULTILINE)
WRITTEN_WITH_BLANK = re.compile(r"^ ( *\[(?:\d+|[A-Z])\])", re.MULTILINE)


@dataclass(frozen=True)
class RankedRecord:
    """A query with passages and their ranking.

    ranking: positions in `passages`, best first. It may cover only some of the passages, and it is empty if the record
    gives `scores` [n] instead.
    """

    query: str
    passages: tuple[str, ...]
    ranking: tuple[int, ...]
    scores: tuple[float, ...] | None = None


def written(scheme: str, count: int) -> Identifiers:
    """Returns the identifiers as text only. The token ids are empty, since text needs no tokenizer."""
    return Identifiers(scheme, labels_of_scheme(scheme, count), "[", "]", " > ", (), (), (), (), (), True)


def from_conversation(record: Mapping[str, object]) -> RankedRecord:
    """Returns the ranked list of a conversation.

    Raises BadRecord if the answer is not a complete permutation of the passages.
    """
    turns = _turns(record["conversations"])
    for name in ("user", "assistant"):
        if name not in turns:
            raise BadRecord(f"no turn of the {'human' if name == 'user' else 'gpt'} (found: {', '.join(turns)})")
    scheme, query, passages = _split(turns["user"])
    identifiers = written(scheme, len(passages))
    answer = turns["assistant"].strip()
    found = parse(answer, len(passages), identifiers)
    if found.status != "ok":
        what = found.reason or ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in found.repairs.items())
        raise BadRecord(f"the answer is no permutation of {len(passages)} passages ({what}): {answer[:80]!r}")
    if re.sub(r"\s*>\s*", " > ", answer) != identifiers.text(found.order):
        raise BadRecord(f"the answer holds more than identifiers: {answer[:80]!r}")
    return RankedRecord(query, tuple(passages), found.order)


def _turns(conversation: object) -> dict[str, str]:
    """Returns the content of each role. The role's name identifies a turn, whatever its position.

    Raises BadRecord for an invalid turn and for a second turn of the same role.
    """
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


def _split(prompt: str) -> tuple[str, str, list[str]]:
    """Splits a prompt into (scheme, query, passages). The query and each passage may have several lines.

    Raises BadRecord if the prompt has fewer than two passages, does not repeat the query, or has ambiguous labels.
    """
    starts = [match.start() for match in FIRST.finditer(prompt)]
    if not starts:
        raise BadRecord("the prompt shows fewer than two passages behind [1], [2], … or [A], [B], …")
    start, end, query = _around_passages(prompt, starts)
    scheme = "numbers" if prompt[start + 1] == "1" else "letters"
    stated = STATED.search(prompt[:start])
    texts = _passages(prompt[start:end], scheme, int(stated.group(1)) if stated else None)
    if not query:
        raise BadRecord("the query is empty")
    if not all(texts):
        raise BadRecord(f"passage {texts.index('') + 1} is empty")
    return scheme, query, texts


def _around_passages(prompt: str, starts: Sequence[int]) -> tuple[int, int, str]:
    """Returns (start of the passages, end of the passages, query). The same query must precede and follow the passages.

    starts: the offsets of all lines that begin with the first label. The query may contain such a line too, so the
    search takes the last offset that fits. A line inside a passage never fits, because no text after the passages
    repeats both the query and the part of the passage before that line.
    """
    for start in reversed(starts):
        for introduces, repeats, stop in FORMS:
            query = _introduced(prompt[:start], introduces, stop)
            end = None if query is None else _repeated(prompt, start, f"\n{repeats}{query}{stop}")
            if query is not None and end is not None:
                return start, end, query.strip()
    return _by_lines(prompt, starts)


def _repeated(prompt: str, start: int, line: str) -> int | None:
    """Returns the offset of the last `line` after `start` that has no further text on its line, or None."""
    end = prompt.rfind(f"{line}\n", start)
    if end < 0 and prompt.endswith(line):
        end = len(prompt) - len(line)
    return end if end > start else None


def _introduced(before: str, introduces: str, stop: str) -> str | None:
    """Returns the text after `introduces` without the final `stop`, or None if one of the two is missing."""
    _, found, query = before.partition(introduces)
    query = query.strip("\n")
    return query.removesuffix(stop) if found and query.endswith(stop) else None


def _by_lines(prompt: str, starts: Sequence[int]) -> tuple[int, int, str]:
    """Returns the same as `_around_passages` for prompts in which no form of FORMS encloses the passages.

    The query comes from the last line `Search Query: ….` or `Query: …` after the passages. The template `plain` has no
    such line: all text before its passages is the query. Its labels have no blank after them, and its prompts end with
    a line break.
    """
    start, last = starts[0], starts[-1]
    repeated = list(REPEATED.finditer(prompt, start))
    introduced = [query for introduces, _, stop in FORMS if (query := _introduced(prompt[:start], introduces, stop))]
    if not introduced and prompt[last + 3 : last + 4] != " " and prompt.endswith("\n"):
        return last, len(prompt), prompt[:last].strip()
    if repeated:
        query = (repeated[-1]["ranked"] or repeated[-1]["plain"] or "").strip()
        if introduced and introduced[0].strip() != query:
            raise BadRecord(f"the introduction asks for {introduced[0]!r}, the line behind the passages for {query!r}")
        return start, repeated[-1].start(), query
    raise BadRecord("no line 'Search Query: ….' or 'Query: …' stands behind the passages")


def _passages(body: str, scheme: str, stated: int | None) -> list[str]:
    """Splits the passages at their labels.

    Labels must appear in order. `stated` limits the number of passages if the prompt gives it. A forward search finds
    the first possible line of each label, and a backward search the last. Raises BadRecord if they differ, because
    either line could then begin the passage.
    """
    lines = body.split("\n")
    forwards = [0]
    for number, line in enumerate(lines):
        if len(forwards) < (stated or len(lines)) and line.startswith(_label(scheme, len(forwards))):
            forwards += [number] if number else []
    if len(forwards) < 2:
        raise BadRecord("the prompt shows fewer than two passages behind [1], [2], … or [A], [B], …")
    end = len(lines)
    for place in range(len(forwards) - 1, 0, -1):
        label = _label(scheme, place)
        end = max(number for number in range(end) if lines[number].startswith(label))
        if end != forwards[place]:
            raise BadRecord(
                f"several lines begin with {label}, and nothing says which of them begins passage {place + 1}; indent "
                "those that belong to a passage"
            )
    borders = zip(forwards, [*forwards[1:], len(lines)], strict=True)
    texts = ["\n".join(lines[first:last]) for first, last in borders]
    return [
        WRITTEN_WITH_BLANK.sub(r"\1", text.removeprefix(_label(scheme, place)).strip())
        for place, text in enumerate(texts)
    ]


def _label(scheme: str, place: int) -> str:
    return f"[{place + 1}]" if scheme == "numbers" else f"[{chr(ord('A') + place)}]"


def to_conversation(record: RankedRecord, template: PromptTemplate, scheme: str) -> list[dict[str, str]]:
    """Returns the turns of a prompt with the list and of the answer with its full ranking.

    scheme: `letters` or `numbers`. `from_conversation` is the inverse.
    """
    identifiers = written(scheme, len(record.passages))
    labels = identifiers.labels
    content = template.content(labels, [f"[{label}]" for label in labels])
    passages = (_shown(passage) for passage in record.passages)
    parts = [
        part if isinstance(part, str) else record.query if part == Place("query") else next(passages)
        for part in content
    ]
    system = [] if template.system is None else [{"from": "system", "value": template.system}]
    answer = identifiers.text(record.ranking)
    return [*system, {"from": "human", "value": "".join(parts)}, {"from": "gpt", "value": answer}]


def _shown(passage: str) -> str:
    """Puts a blank before each line after the first that looks like a label. `_passages` removes the blank."""
    first, line_break, rest = passage.partition("\n")
    return first + line_break + LOOKS_LIKE_LABEL.sub(r" \1", rest)
