"""RankLLM's training conversations as lists, and lists as conversations."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rankpo.data.readers.fields import BadRecord
from rankpo.data.text.conversations import role
from rankpo.data.text.identifiers import Identifiers, labels_of_scheme
from rankpo.data.text.permutations import parse
from rankpo.data.text.prompt_templates import Place, PromptTemplate

# what introduces the query before the passages, and what repeats it behind them: RankLLM's, where a full stop of its own
# follows, and that of our templates
FORMS = (("search query: ", "Search Query: ", "."), ("this query: ", "Query: ", ""))
REPEATED = re.compile(r"^(?:Search Query: (?P<ranked>.*)\.|Query: (?P<plain>.*))$", re.MULTILINE)
FIRST = re.compile(r"^\[([1A])\]", re.MULTILINE)
STATED = re.compile(r"\b(?:with|are) (\d+) passages\b")
# a line inside a passage that looks like the beginning of one: written with one blank more than it has
LOOKS_LIKE_LABEL = re.compile(r"^( *\[(?:\d+|[A-Z])\])", re.MULTILINE)
WRITTEN_WITH_BLANK = re.compile(r"^ ( *\[(?:\d+|[A-Z])\])", re.MULTILINE)


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


def from_conversation(record: Mapping[str, object]) -> RankedRecord:
    """The list of a conversation. Raises BadRecord unless its answer is a whole permutation of its passages."""
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


def _split(prompt: str) -> tuple[str, str, list[str]]:
    """(scheme, query, passages); both may have several lines.

    Raises BadRecord for a prompt with fewer than two passages, without a line that repeats the query, or whose passages
    begin nobody knows where.
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
    """(where the passages begin, where they end, query): the query that stands before them and behind them alike.

    starts: of the lines that begin with the first label. The last one that fits is taken, since a query may have such a
    line, and behind a line of a passage nothing repeats all that stands before it.
    """
    for start in reversed(starts):
        for introduces, repeats, stop in FORMS:
            query = _introduced(prompt[:start], introduces, stop)
            end = None if query is None else _repeated(prompt, start, f"\n{repeats}{query}{stop}")
            if query is not None and end is not None:
                return start, end, query.strip()
    return _by_lines(prompt, starts)


def _repeated(prompt: str, start: int, line: str) -> int | None:
    """Where the last such line begins behind `start`, with nothing more on it."""
    end = prompt.rfind(f"{line}\n", start)
    if end < 0 and prompt.endswith(line):
        end = len(prompt) - len(line)
    return end if end > start else None


def _introduced(before: str, introduces: str, stop: str) -> str | None:
    """The query at the end of what stands before the passages."""
    _, found, query = before.partition(introduces)
    query = query.strip("\n")
    return query.removesuffix(stop) if found and query.endswith(stop) else None


def _by_lines(prompt: str, starts: Sequence[int]) -> tuple[int, int, str]:
    """The same where nothing known introduces the query: it is one line behind the passages. In the template `plain`,
    whose labels have no blank behind them and which ends with a passage and a line break, it is all that stands before.
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
    """The passages, as many as stated or as there are labels in order. Raises BadRecord where a label begins two lines
    that may both be the beginning of its passage.
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
    """The turns that show a list and its full ranking under letters or numbers; `from_conversation` reads them back."""
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
    """A passage whose inner lines cannot be taken for the beginning of another; reading takes the blank off again."""
    first, line_break, rest = passage.partition("\n")
    return first + line_break + LOOKS_LIKE_LABEL.sub(r" \1", rest)
