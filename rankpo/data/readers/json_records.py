"""Records of JSON files: lines, arrays, and objects with an array under `data`, read one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import orjson

from rankpo.data.readers.compression import opened
from rankpo.data.readers.json_scanner import (
    ARRAY_START,
    BLOCK,
    CLOSING,
    COLON,
    COMMA,
    OBJECT_END,
    OPENING,
    QUOTE,
    Scanner,
    Token,
    elements,
)
from rankpo.data.readers.not_a_record import NotARecord
from rankpo.storage.printable import one_line

FINETUNE_KEYS = ("queries", "corpus", "relevant_docs")  # The keys of LlamaIndex's JSON object.
BOM = b"\xef\xbb\xbf"
ENVELOPE_KEY = "data"  # The key of the records in a JSON file with a single object.
REST = "the rest of the file was not read"


@dataclass(frozen=True)
class WholeObject:
    """A file that holds one object. members: its values by key, except for an array under `data`.

    data: the place of the first byte behind the bracket of that array; None without one.
    """

    members: dict[str, Any]
    data: int | None

    @property
    def is_record(self) -> bool:
        """Whether the object is a record itself: it has no array of records, and is not LlamaIndex's object."""
        return self.data is None and not all(isinstance(self.members.get(key), dict) for key in FINETUNE_KEYS)


def json_lines(name: str, file: IO[bytes]) -> Iterator[tuple[str, object]]:
    """Yields (file:line, record) of every line that is not blank."""
    for number, line in enumerate(file, 1):
        text = (line.removeprefix(BOM) if number == 1 else line).strip()
        if text:
            yield f"{name}:{number}", _parse(text)


def json_file(path: Path) -> Iterator[tuple[str, object]]:
    """Yields the records of a .json file: an array, an object with an array under `data`, one record, or JSON Lines.

    Records of arrays are parsed one by one, so that the file may be larger than memory. LlamaIndex's object refers to
    its texts by id and is read as a whole.
    """
    name = one_line(path.name)
    with opened(path) as file:
        start, letter = _first(file)
    if letter == b"[":
        yield from _array(path, start + 1, name, whole=True)
        return
    whole = _whole_object(path) if letter == b"{" else None
    if whole is None or (whole.is_record and _is_one_line(path)):
        with opened(path) as file:
            yield from json_lines(name, file)
    elif whole.is_record:
        yield f"{name}[0]", whole.members
    elif whole.data is not None:
        yield from _array(path, whole.data, f"{name}:{ENVELOPE_KEY}", whole=False)
    else:
        yield from _finetune_dataset(name, whole.members)


def envelope(path: Path) -> dict[str, object]:
    """The other keys of a JSON file that is one object with records under `data`; {} for any other file."""
    whole = _whole_object(path)
    return {} if whole is None or whole.is_record else whole.members


def _is_one_line(path: Path) -> bool:
    with opened(path) as file:
        return b"\n" not in file.read().strip()


def _first(file: IO[bytes]) -> tuple[int, bytes]:
    """The place of the first byte that is neither blank nor of a byte order mark, and that byte; b"" without one."""
    place, block = 0, file.read(BLOCK)
    if block.startswith(BOM):
        place, block = len(BOM), block[len(BOM) :]
    while block:
        text = block.lstrip()
        if text:
            return place + len(block) - len(text), text[:1]
        place, block = place + len(block), file.read(BLOCK)
    return place, b""


def _array(path: Path, start: int, prefix: str, *, whole: bool) -> Iterator[tuple[str, object]]:
    """The records of an array from the place behind its bracket on; reading stops at an invalid one.

    whole: whether the array is all that the file may hold.
    """
    count = 0
    with opened(path) as file:
        _skip(file, start)
        scanner = Scanner(file)
        try:
            for element in elements(scanner, scanner.tokens(), 0):
                item = orjson.loads(element)
                yield f"{prefix}[{count}]", item if isinstance(item, dict) else _not_an_object(item)
                count += 1
            if whole and not scanner.ends():
                raise ValueError("the file goes on behind the end of the array")
        except ValueError as error:
            yield f"{prefix}[{count}]", NotARecord(f"not JSON: {error}; {REST}")


def _skip(file: IO[bytes], count: int) -> None:
    while count:
        count -= len(file.read(min(count, BLOCK)))


def _whole_object(path: Path) -> WholeObject | None:
    """The object that a file holds, or None for JSON Lines and other files."""
    with opened(path) as file:
        start, letter = _first(file)
    if letter != b"{":
        return None
    with opened(path) as file:
        _skip(file, start + 1)
        scanner = Scanner(file)
        try:
            members, data = _members(scanner)
        except ValueError:
            return None
        if not scanner.ends():  # JSON Lines
            return None
    return WholeObject(members, None if data is None else start + 1 + data)


def _members(scanner: Scanner) -> tuple[dict[str, Any], int | None]:
    """The members of an object from the place behind its brace on, and the place of an array under `data`.

    The place is behind the array's bracket; the array is not among the members. Raises ValueError for invalid JSON.
    """
    members: dict[str, Any] = {}
    data: int | None = None
    tokens = scanner.tokens()
    letter = COMMA
    while letter == COMMA:
        start, end, letter = _next(tokens)
        if letter != QUOTE:
            raise ValueError("a member has no key")
        key = orjson.loads(scanner.between(start, end))
        _, begin, letter = _next(tokens)
        if letter != COLON:
            raise ValueError("no colon follows a key")
        scanner.keep(begin)
        token = _next(tokens)
        if key == ENVELOPE_KEY and token[2] == ARRAY_START and not scanner.between(begin, token[0]).strip():
            data = token[1]
            for _ in elements(scanner, tokens, data):
                pass
            start, end, letter = _next(tokens)
            if scanner.since_kept(start).strip():
                raise ValueError("no comma follows an array")
        else:
            start, end, letter = _value_end(tokens, token)
            members[key] = orjson.loads(scanner.between(begin, start))
        scanner.keep(end)
    if letter != OBJECT_END:
        raise ValueError("an object is not closed")
    return members, data


def _next(tokens: Iterator[Token]) -> Token:
    token = next(tokens, None)
    if token is None:
        raise ValueError("the file ends within an object")
    return token


def _value_end(tokens: Iterator[Token], token: Token) -> Token:
    """The comma or closing bracket behind a value of an object. token: the first one of the value or behind it."""
    depth = 0
    while depth or token[2] not in b",]}":
        depth += (token[2] in OPENING) - (token[2] in CLOSING)
        token = _next(tokens)
    return token


def _finetune_dataset(name: str, whole: dict[str, Any]) -> Iterator[tuple[str, object]]:
    """LlamaIndex's EmbeddingQAFinetuneDataset: texts by id, and the relevant documents of each query."""
    queries, corpus, relevant = (whole[key] for key in FINETUNE_KEYS)
    for identity, documents in relevant.items():
        place = f"{name}:relevant_docs[{identity}]"
        missing = [key for key in documents if key not in corpus]
        if identity not in queries or missing:
            yield place, NotARecord(f"no text for {', '.join(missing) or 'the query'}")
        else:
            yield place, {"id": identity, "query": queries[identity], "positives": [corpus[key] for key in documents]}


def _parse(text: bytes) -> object:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        return NotARecord(f"not JSON: {error}")
    return value if isinstance(value, dict) else _not_an_object(value)


def _not_an_object(value: object) -> object:
    """A list of texts as a record with numbered columns; a NotARecord for anything else."""
    if isinstance(value, list) and len(value) > 1 and all(isinstance(item, str) for item in value):
        return {f"text_{number}": item for number, item in enumerate(value, 1)}
    return NotARecord(f"not a JSON object but {type(value).__name__}")
