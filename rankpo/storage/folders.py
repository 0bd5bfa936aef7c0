"""Atomic folder writes, with a manifest of the files."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash
from safetensors import SafetensorError

from rankpo.errors import StorageError
from rankpo.storage.atomic import room, sync, unwritten

MANIFEST = "manifest.json"


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Yields a temporary folder, which is synced to disk and renamed to `target` if the block succeeds.

    Raises StorageError if the disk is full; an earlier folder is then unchanged.
    """
    recover(target)
    temporary = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        _manifest(temporary)
        _open_to_umask(temporary)
        for path in [*temporary.rglob("*"), temporary]:
            sync(path)
        _replace(temporary, target)
        sync(target.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if number := unwritten(error, target.parent):
            raise StorageError(f"{target}: {room(number)}; nothing was replaced, earlier files are intact") from error
        raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _open_to_umask(folder: Path) -> None:
    """Applies the umask's mode to every file, since safetensors writes files readable only by their owner."""
    mode = stat.S_IMODE(folder.stat().st_mode) & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def recover(target: Path) -> None:
    """Cleans up after an interrupted write of `target`. An old folder that was already moved aside is restored.

    Only the process with the lock of the run directory may call it, because it removes unfinished folders.
    """
    for old in target.parent.glob(f"{target.name}.old-*"):
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(target)
    for temporary in target.parent.glob(f"{target.name}.tmp-*"):
        shutil.rmtree(temporary, ignore_errors=True)


def _replace(temporary: Path, target: Path) -> None:
    if target.exists():
        old = target.with_name(f"{target.name}.old-{os.getpid()}")
        target.rename(old)
        temporary.rename(target)
        remove_written(old)
        _keep_foreign(old, target)
    else:
        temporary.rename(target)


def _keep_foreign(old: Path, target: Path) -> None:
    """Moves files that rankpo did not write from the old folder to the new one, unless it has a file of that name."""
    for path in sorted(old.rglob("*")) if old.exists() else ():
        place = target / path.relative_to(old)
        if path.is_file() and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            path.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def remove_written(folder: Path) -> None:
    """Removes the files that `written_whole` wrote, and the folder if it is then empty.

    A folder without a manifest is not changed.
    """
    for name in read_manifest(folder) or {} if (folder / MANIFEST).is_file() else {}:
        path = folder / name
        if path.resolve().is_relative_to(folder.resolve()):
            path.unlink(missing_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    for path in sorted(folder.rglob("*"), reverse=True) if folder.is_dir() else ():
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def checksum(path: Path) -> str:
    """The xxh3-128 digest of a file's content."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _manifest(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = {path.relative_to(folder).as_posix(): [path.stat().st_size, checksum(path)] for path in files}
    (folder / MANIFEST).write_text(json.dumps(entries, indent=0), encoding="utf-8")


def note_files(folder: Path) -> None:
    """Writes the manifest of a folder again, with files that were added after `written_whole`."""
    (folder / MANIFEST).unlink(missing_ok=True)
    _manifest(folder)


def read_manifest(folder: Path) -> dict[str, tuple[int, str]] | None:
    """Size and checksum of each file that `written_whole` wrote, by its relative path; None for any other content."""
    try:
        entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        found = {str(name): (int(size), str(digest)) for name, (size, digest) in entries.items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    return found or None


def damage(folder: Path, largest: int | None = None) -> str | None:
    """Returns the damage of a folder of `written_whole`, or None.

    largest: for files with more bytes, only the size is compared; None compares the content of all files.
    """
    if not (folder / MANIFEST).exists():
        return f"{MANIFEST} is missing"
    entries = read_manifest(folder)
    if entries is None:
        return f"{MANIFEST} is not a list of files"
    for name, (size, expected) in entries.items():
        path = folder / name
        if not path.exists():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if (largest is None or size <= largest) and checksum(path) != expected:
            return f"{name} has another content than was written"
    return None
