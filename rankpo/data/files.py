"""Records of files: JSON Lines, JSON arrays, CSV and TSV, plain or compressed; each with the place it came from."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

import orjson
import xxhash

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")


class NotARecord(ValueError):
    """A line that is not a JSON object."""


def find(path: str | Sequence[str], key: str) -> list[Path]:
    """The files of a path, folder, glob, or list of these, sorted. Raises FileNotFoundError naming `key`."""
    files: list[Path] = []
    for item in [path] if isinstance(path, str) else path:
        place = Path(item).expanduser()
        if place.is_dir():
            found = sorted(p for p in place.rglob("*") if _kind(p) is not None)
        elif any(letter in item for letter in "*?["):
            found = sorted(
                Path(place.anchor or ".").glob(str(place.relative_to(place.anchor) if place.anchor else place))
            )
        else:
            found = [place] if place.is_file() else []
        if not found:
            raise FileNotFoundError(
                f"{key}: {item} does not exist or holds no data file ({', '.join(SUFFIXES)}, also .gz)"
            )
        files.extend(found)
    return files


def _kind(path: Path) -> str | None:
    name = path.name.removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def content_fingerprint(files: Sequence[Path]) -> str:
    """xxh3-128 over the contents, in order."""
    digest = xxhash.xxh3_128()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
        digest.update(b"\0")
    return digest.hexdigest()


def records(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, record) of every record; the place is `file:line` (`file[index]` in an array).

    A line that is not a JSON object gives a NotARecord in place of the record, so that the caller can go on.
    """
    kind = _kind(path) or ".jsonl"
    with _open(path) as file:
        if kind == ".jsonl":
            yield from _json_lines(path.name, file)
        elif kind == ".json":
            yield from _json_array(path.name, file.read())
        else:
            yield from _table(path.name, file, "," if kind == ".csv" else "\t")


def _open(path: Path) -> IO[bytes]:
    if path.name.endswith(".gz"):
        return cast("IO[bytes]", gzip.open(path, "rb"))
    return path.open("rb")


def _json_lines(name: str, file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, 1):
        text = line.removeprefix(b"\xef\xbb\xbf").strip()
        if text:
            yield f"{name}:{number}", _parse(text)


def _json_array(name: str, content: bytes) -> Iterator[tuple[str, Any]]:
    content = content.removeprefix(b"\xef\xbb\xbf")
    if not content.lstrip().startswith(b"["):
        yield from _json_lines(name, io.BytesIO(content))  # JSON Lines under the name .json
        return
    try:
        items = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        yield f"{name}:{error.lineno}", NotARecord(f"not JSON: {error}")
        return
    for index, item in enumerate(items):
        yield f"{name}[{index}]", item if isinstance(item, dict) else NotARecord("not a JSON object")


def _parse(text: bytes) -> Any:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        return NotARecord(f"not JSON: {error}")
    return value if isinstance(value, dict) else NotARecord(f"not a JSON object but {type(value).__name__}")


def _table(name: str, file: IO[bytes], delimiter: str) -> Iterator[tuple[str, Any]]:
    reader = csv.DictReader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), delimiter=delimiter)
    for row in reader:
        yield f"{name}:{reader.line_num}", row
