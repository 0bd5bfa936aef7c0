"""Remote files with addresses such as hf://, s3:// and https://, downloaded once with fsspec to a local folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash

from rankpo.storage.atomic import replace_text

FOLDER = "RANKPO_DOWNLOADS"  # The environment variable with the path of another folder.
CHUNK = 1 << 22


def is_address(path: str) -> bool:
    """Whether a path is an address of an fsspec file system."""
    return "://" in path


def downloads() -> Path:
    """The folder of downloaded files."""
    return Path(os.environ.get(FOLDER, "~/.cache/rankpo/downloads")).expanduser()


def fetched(address: str, wanted: Callable[[str], bool]) -> list[Path]:
    """Local copies of the files of an address: a file, a folder (files for which `wanted` is true) or a glob.

    A file is downloaded again if it has changed. Without a connection, earlier copies are used. Raises FileNotFoundError
    for an address without files, ValueError if the address cannot be reached or read.
    """
    import fsspec

    try:
        system, place = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{address} cannot be opened: {error}") from error
    try:
        places = _places(system, place, wanted)
    except FileNotFoundError:
        raise
    except Exception as error:  # Each file system raises its own exceptions.
        if kept := _kept(address):
            return kept
        raise ValueError(f"{address} cannot be reached: {type(error).__name__}: {error}") from error
    if not places:
        raise FileNotFoundError(f"{address} does not exist or holds no data file")
    if "file" in _protocols(system) or "local" in _protocols(system):
        return [Path(found) for found in places]
    copies = [_copy(system, found, address) for found in places]
    _note(address, copies)
    return copies


def _protocols(system: Any) -> tuple[str, ...]:
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)


def _places(system: Any, place: str, wanted: Callable[[str], bool]) -> list[str]:
    if any(letter in place for letter in "*?["):
        return sorted(found for found in system.glob(place) if system.isfile(found))
    if system.isfile(place):
        return [place]
    return sorted(found for found in system.find(place) if wanted(found))


def _copy(system: Any, place: str, address: str) -> Path:
    """The local copy of one file. It keeps the names of the file and its folder, because readers interpret names."""
    version = xxhash.xxh3_64_hexdigest(f"{_protocols(system)[0]}|{place}|{system.ukey(place)}".encode())
    parts = [part for part in place.split("/") if part]
    copy = downloads() / version / (parts[-2] if len(parts) > 1 else "files") / parts[-1]
    if copy.is_file():
        return copy
    copy.parent.mkdir(parents=True, exist_ok=True)
    partial = copy.with_name(f"{copy.name}.part-{os.getpid()}")
    try:
        with system.open(place, "rb") as source, partial.open("wb") as target:
            shutil.copyfileobj(source, target, CHUNK)
        os.replace(partial, copy)
    except OSError as error:
        raise ValueError(f"{address}: {place} cannot be fetched: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return copy


def _list_of(address: str) -> Path:
    return downloads() / "addresses" / xxhash.xxh3_64_hexdigest(address.encode())


def _note(address: str, copies: list[Path]) -> None:
    """Stores the list of copies of an address, for a start without a connection."""
    path = _list_of(address)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, "".join(f"{copy}\n" for copy in copies))


def _kept(address: str) -> list[Path]:
    """The copies of an earlier start, or [] if one of them is missing."""
    path = _list_of(address)
    copies = [Path(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    return copies if all(copy.is_file() for copy in copies) else []
