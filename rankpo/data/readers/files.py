"""Records of files: JSON Lines, JSON arrays, CSV, TSV, Parquet and Arrow; each with the place it came from."""

from __future__ import annotations

import csv
import gzip
import io
import sys
import zlib
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, cast

import orjson
import xxhash

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
COMPRESSED = (".gz", ".zst")  # of the four text formats
EXTRAS = {".zst": ("zstandard", "zstd"), ".parquet": ("pyarrow", "parquet"), ".arrow": ("pyarrow", "parquet")}
ROWS_PER_BATCH = 1024  # of Parquet: bounds memory, where a row group may hold a million rows
BOM = b"\xef\xbb\xbf"


class NotARecord(ValueError):
    """A line that is not a JSON object, or a row that does not fit its header."""


def find(path: str | Sequence[str], key: str) -> list[Path]:
    """The files of a path, folder, glob, or list of these, sorted within each.

    Raises FileNotFoundError for a place without data files, ValueError for a file of a kind that cannot be read here;
    both begin with `key`.
    """
    found: list[Path] = []
    for item in [path] if isinstance(path, str) else path:
        place = Path(item).expanduser()
        if place.is_file():
            matches = [place]
        elif place.is_dir():
            matches = [
                file for file in sorted(place.rglob("*")) if file.is_file() and _kind(file) and _seen(file, place)
            ]
        elif any(letter in item for letter in "*?["):
            root = Path(place.anchor or ".")
            pattern = str(place.relative_to(place.anchor) if place.anchor else place)
            matches = [file for file in sorted(root.glob(pattern)) if file.is_file()]
        else:
            matches = []
        if not matches:
            raise FileNotFoundError(
                f"{key}: {item} does not exist or holds no data file ({', '.join(SUFFIXES)}; also {', '.join(COMPRESSED)})"
            )
        found.extend(matches)
    for file in found:
        _check(file, key)
    return found


def _seen(file: Path, folder: Path) -> bool:
    return not any(part.startswith(".") for part in file.relative_to(folder).parts)


def _kind(path: Path) -> str | None:
    name = path.name
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    kind = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)
    return None if name != path.name and kind in (".parquet", ".arrow") else kind


def _check(path: Path, key: str) -> None:
    if _kind(path) is None:
        known = f"{', '.join(SUFFIXES)}, the text formats also with {' or '.join(COMPRESSED)}"
        raise ValueError(f"{key}: {path} is of an unknown kind; known: {known}")
    for suffix, (package, extra) in EXTRAS.items():
        if path.name.endswith(suffix) and find_spec(package) is None:
            raise ValueError(f"{key}: {path} needs the package {package}: pip install 'rankpo[{extra}]'")


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
    """(place, record) of every record; the place is `file:line` (`file[index]` of an array or a table of columns).

    What is no record gives a NotARecord in its place, so that the caller can go on. Bytes are UTF-8, with or without
    a byte order mark; lines end in LF or CRLF.
    """
    kind = _kind(path)
    if kind == ".parquet":
        yield from _parquet(path)
        return
    if kind == ".arrow":
        yield from _arrow(path)
        return
    try:
        with _open(path) as file:
            if kind == ".json":
                yield from _json_array(path.name, file.read())
            elif kind in (".csv", ".tsv"):
                yield from _table(path.name, file, "," if kind == ".csv" else "\t")
            else:
                yield from _json_lines(path.name, file)
    except _compression_errors(path) as error:
        yield path.name, NotARecord(f"cannot be decompressed: {error}")


def _open(path: Path) -> IO[bytes]:
    if path.name.endswith(".gz"):
        return cast("IO[bytes]", gzip.open(path, "rb"))
    if path.name.endswith(".zst"):
        import zstandard

        return io.BufferedReader(zstandard.open(path, "rb"))  # type: ignore[arg-type]
    return path.open("rb")


def _compression_errors(path: Path) -> tuple[type[Exception], ...]:
    if path.name.endswith(".gz"):
        return (gzip.BadGzipFile, zlib.error, EOFError)
    if path.name.endswith(".zst"):
        import zstandard

        return (zstandard.ZstdError,)
    return ()


def _json_lines(name: str, file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, 1):
        text = (line.removeprefix(BOM) if number == 1 else line).strip()
        if text:
            yield f"{name}:{number}", _parse(text)


def _json_array(name: str, content: bytes) -> Iterator[tuple[str, Any]]:
    content = content.removeprefix(BOM)
    if not content.lstrip().startswith(b"["):
        yield from _json_lines(name, io.BytesIO(content))  # JSON Lines under the name .json
        return
    try:
        items = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        yield f"{name}:{error.lineno}", NotARecord(f"not JSON: {error}")
        return
    for index, item in enumerate(items):
        yield f"{name}[{index}]", item if isinstance(item, dict) else _not_an_object(item)


def _parse(text: bytes) -> Any:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        return NotARecord(f"not JSON: {error}")
    return value if isinstance(value, dict) else _not_an_object(value)


def _not_an_object(value: Any) -> NotARecord:
    return NotARecord(f"not a JSON object but {type(value).__name__}")


def _table(name: str, file: IO[bytes], delimiter: str) -> Iterator[tuple[str, Any]]:
    """Rows under a header line. A quoted cell may hold line ends; the place is the row's last line."""
    previous = csv.field_size_limit(sys.maxsize)  # 131,072 letters by default: a long document has more
    # decoded line by line: the line that is not UTF-8 can be named
    reader = csv.reader((line.decode("utf-8") for line in _without_bom(file)), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        for row in reader:
            if row and len(row) != len(header):
                yield f"{name}:{reader.line_num}", NotARecord(f"{len(row)} columns under a header of {len(header)}")
            elif row:
                yield f"{name}:{reader.line_num}", dict(zip(header, row, strict=True))
    except UnicodeDecodeError as error:
        yield f"{name}:{reader.line_num + 1}", NotARecord(f"not UTF-8: {error}; the rest of the file was not read")
    except csv.Error as error:
        yield f"{name}:{reader.line_num}", NotARecord(f"{error}; the rest of the file was not read")
    finally:
        csv.field_size_limit(previous)


def _without_bom(file: IO[bytes]) -> Iterator[bytes]:
    yield file.readline().removeprefix(BOM)
    yield from file


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=ROWS_PER_BATCH)
        yield from _rows(path.name, batches)
    except pyarrow.ArrowInvalid as error:
        yield path.name, NotARecord(f"not Parquet: {error}")


def _arrow(path: Path) -> Iterator[tuple[str, Any]]:
    """Arrow's file form, or its stream form, in which the datasets library keeps its tables."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as source:
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            if is_file:
                reader = pyarrow.ipc.open_file(source)
                batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
                yield from _rows(path.name, batches)
            else:
                yield from _rows(path.name, iter(pyarrow.ipc.open_stream(source)))
    except pyarrow.ArrowInvalid as error:
        yield path.name, NotARecord(f"not Arrow: {error}")


def _rows(name: str, batches: Iterator[Any]) -> Iterator[tuple[str, Any]]:
    index = 0
    for batch in batches:
        for row in batch.to_pylist():
            yield f"{name}[{index}]", row
            index += 1
