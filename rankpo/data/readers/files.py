"""Records of files (JSON Lines, JSON arrays, CSV, TSV, Parquet and Arrow), each with its file and line."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import xxhash

from rankpo.data.readers.compression import errors, opened
from rankpo.data.readers.json_records import BOM, json_file, json_lines
from rankpo.data.readers.not_a_record import NotARecord as NotARecord
from rankpo.data.readers.remote import fetched, is_address
from rankpo.storage.printable import one_line

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
COMPRESSED = (".gz", ".zst")  # Allowed for the four text formats.
EXTRAS = {".zst": ("zstandard", "zstd"), ".parquet": ("pyarrow", "parquet"), ".arrow": ("pyarrow", "parquet")}


def find(path: str | Sequence[str], key: str) -> list[Path]:
    """The files of a path, folder, glob, or list of these, sorted within each.

    Raises FileNotFoundError for a path without data files, ValueError for a file of an unsupported format. Both messages
    begin with `key`.
    """
    found: list[Path] = []
    for item in [path] if isinstance(path, str) else path:
        if is_address(item):
            found.extend(_fetched(item, key))
            continue
        place = Path(item).expanduser()
        if place.is_file():
            matches = [place]
        elif place.is_dir():
            matches = [
                file for file in sorted(place.rglob("*")) if file.is_file() and kind(file) and _seen(file, place)
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


def _fetched(address: str, key: str) -> list[Path]:
    """Local copies of the data files of an address. Raises the same errors as `find`."""
    try:
        return fetched(address, lambda name: kind(Path(name)) is not None)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"{key}: {error}") from error


def _seen(file: Path, folder: Path) -> bool:
    return not any(part.startswith(".") for part in file.relative_to(folder).parts)


def kind(path: Path) -> str | None:
    """The suffix of SUFFIXES that determines the format of a file, or None."""
    name = one_line(path.name)
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    found = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)
    return None if name != path.name and found in (".parquet", ".arrow") else found


def _check(path: Path, key: str) -> None:
    if kind(path) is None:
        known = f"{', '.join(SUFFIXES)}, the text formats also with {' or '.join(COMPRESSED)}"
        raise ValueError(f"{key}: {path} has an unknown suffix; known are {known}")
    for suffix, (package, extra) in EXTRAS.items():
        if path.name.endswith(suffix) and find_spec(package) is None:
            raise ValueError(f"{key}: {path} needs the package {package}: pip install 'rankpo[{extra}]'")


def content_fingerprint(files: Sequence[Path]) -> str:
    """The xxh3-128 digest of the contents, in order."""
    digest = xxhash.xxh3_128()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
        digest.update(b"\0")
    return digest.hexdigest()


def records(path: Path, quoted_tsv: bool = False) -> Iterator[tuple[str, Any]]:
    """Yields (place, record) for every record. The place is `file:line`, or `file[index]` in arrays and columnar files.

    An invalid record is yielded as a NotARecord, so that the caller can continue. The encoding is UTF-8, with or without
    a byte order mark; lines end in LF or CRLF. quoted_tsv: whether cells of TSV can be quoted like those of CSV; if not,
    a quotation mark is an ordinary character.
    """
    form = kind(path)
    if form in (".parquet", ".arrow"):
        from rankpo.data.readers import columnar

        yield from columnar.parquet(path) if form == ".parquet" else columnar.arrow(path)
    elif is_table(path):
        yield from _table(path, quoted_tsv)
    else:
        try:
            yield from json_file(path) if form == ".json" else _json_lines(path)
        except errors(path) as error:
            yield one_line(path.name), NotARecord(f"cannot be decompressed: {error}")


def _json_lines(path: Path) -> Iterator[tuple[str, object]]:
    with opened(path) as file:
        yield from json_lines(one_line(path.name), file)


def is_table(path: Path) -> bool:
    """Whether a file is CSV or TSV."""
    return kind(path) in (".csv", ".tsv")


def first_row(path: Path) -> list[str]:
    """The cells of the first line of a table; [] if it cannot be read."""
    row = next((row for _, row in rows(path)), [])
    return row if isinstance(row, list) else []


def rows(path: Path, quoted_tsv: bool = False) -> Iterator[tuple[str, list[str] | NotARecord]]:
    """Yields (file:line, cells) for the non-blank lines of a table, including the header.

    A quoted cell can contain line breaks; the line is then the last one of the row. Reading stops after a NotARecord.
    """
    try:
        with opened(path) as file:
            yield from _cells(path, file, quoted_tsv)
    except errors(path) as error:
        yield one_line(path.name), NotARecord(f"cannot be decompressed: {error}")


def _cells(path: Path, file: IO[bytes], quoted_tsv: bool) -> Iterator[tuple[str, list[str] | NotARecord]]:
    previous = csv.field_size_limit(sys.maxsize)  # The default of 131,072 characters is too small for long documents.
    tabs = kind(path) == ".tsv"
    plain = tabs and not quoted_tsv
    # Decoding line by line lets the message contain the number of the line that is not UTF-8.
    lines = (line.decode("utf-8") for line in _without_bom(file))
    reader = csv.reader(
        lines, delimiter="\t" if tabs else ",", strict=True, quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL
    )
    try:
        for row in reader:
            if row:
                yield f"{one_line(path.name)}:{reader.line_num}", row
    except UnicodeDecodeError as error:
        yield (
            f"{one_line(path.name)}:{reader.line_num + 1}",
            NotARecord(f"not UTF-8: {error}; the rest of the file was not read"),
        )
    except csv.Error as error:
        yield f"{one_line(path.name)}:{reader.line_num}", NotARecord(f"{error}; the rest of the file was not read")
    finally:
        csv.field_size_limit(previous)


def _table(path: Path, quoted_tsv: bool) -> Iterator[tuple[str, object]]:
    """Yields the rows of a table with a header line."""
    header: list[str] | None = None
    for place, row in rows(path, quoted_tsv):
        if isinstance(row, NotARecord):
            yield place, row
        elif header is None:
            header = row
            if len(header) == 1 and (cut := next((mark for mark in ";\t|" if mark in header[0]), None)):
                yield (
                    place,
                    NotARecord(
                        f"the cells seem to be separated by {cut!r}; write them with commas, or as .tsv with tabs"
                    ),
                )
                return
            if twice := sorted({name for name in header if header.count(name) > 1}):
                yield place, NotARecord(f"the header has {', '.join(twice)} more than once; the file was not read")
                return
        elif len(row) != len(header):
            quoted = kind(path) == ".tsv" and not quoted_tsv and any('"' in cell for cell in row)
            remedy = "; for quoted cells, set quoted_tsv=true" if quoted else ""
            yield place, NotARecord(f"{len(row)} columns, but the header has {len(header)}{remedy}")
        else:
            yield place, dict(zip(header, row, strict=True))


def _without_bom(file: IO[bytes]) -> Iterator[bytes]:
    yield file.readline().removeprefix(BOM)
    yield from file
