"""Sources of records: files or a dataset of the hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rankpo.data.readers import files
from rankpo.data.readers.hub_source import HubSource
from rankpo.data.readers.texts import without_corpora

if TYPE_CHECKING:
    from rankpo.data.readers.record_keys import RecordKeys


class Source(Protocol):
    """A source of records.

    files: the paths, in reading order. has_neighbours: whether a corpus file may lie in the same folder as a data file.
    """

    @property
    def files(self) -> list[Path]: ...
    @property
    def has_neighbours(self) -> bool: ...
    def records(self, path: Path) -> Iterator[tuple[str, object]]: ...
    def content(self, corpora: Sequence[Path]) -> str: ...


class FileSource:
    """Reads records from files, folders, globs and fsspec addresses.

    quoted_tsv: see `files.records`.
    """

    has_neighbours = True

    def __init__(self, path: str | Sequence[str], quoted_tsv: bool) -> None:
        found = files.find(path, "path")
        named = {path} if isinstance(path, str) else set(path)
        kept = set(without_corpora(found))
        self.files = [file for file in found if file in kept or str(file) in named]
        self.quoted_tsv = quoted_tsv

    def records(self, path: Path) -> Iterator[tuple[str, object]]:
        """Yields (place, record) for every record of one of the files."""
        return files.records(path, self.quoted_tsv)

    def content(self, corpora: Sequence[Path]) -> str:
        """Returns a fingerprint of the contents of all files.

        corpora: the files with the documents to which the records refer by id.
        """
        return files.content_fingerprint([*self.files, *corpora])


def source_of(keys: RecordKeys) -> Source:
    """Returns a FileSource if `path` is set, otherwise a HubSource. Raises FileNotFoundError or ValueError."""
    if keys.path is not None:
        return FileSource(keys.path, keys.quoted_tsv)
    return HubSource(
        name=str(keys.hub),
        key=f"datasets.{keys.name}",
        config=keys.config,
        split=keys.split,
        revision=keys.revision,
        streaming=keys.streaming,
    )
