"""Corpora of a search: files, the datasets' own corpora, or all passages of their examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import xxhash

from rankpo.data.readers import files
from rankpo.data.readers.fields import normal
from rankpo.data.readers.texts import BEIR_FILES, joined, read_texts, read_titled, text_id
from rankpo.data.shape import HasTitles
from rankpo.errors import ConfigError

POOL, OWN = "pool", "own"


class TextSource(Protocol):
    """Interface of texts with ids that can be read several times. files: input files, which nothing may overwrite.

    titles: the titles of the texts that have one, by their ids.
    """

    @property
    def name(self) -> str: ...

    @property
    def files(self) -> Sequence[Path]: ...

    def texts(self) -> Iterator[tuple[str, str]]: ...

    def titles(self) -> dict[str, str]: ...


def text_key(text: str) -> bytes:
    """Returns the key of a text for deduplication: xxh3-128 after NFC and collapsed white space."""
    return xxhash.xxh3_128_digest(normal(text).encode())


@dataclass(frozen=True)
class FileTexts:
    """Records of a file, folder or glob; of a BEIR folder, its corpus.jsonl or queries.jsonl.

    role: "passage" or "query", which decides the keys. A title is put before its text. Texts without an id
    get `text_id` and occur once.
    """

    path: str
    role: str

    @property
    def name(self) -> str:
        return Path(self.path).name

    @property
    def files(self) -> Sequence[Path]:
        beir = Path(self.path) / BEIR_FILES[self.role]
        return [beir] if beir.is_file() else files.find(self.path, "path")

    def texts(self) -> Iterator[tuple[str, str]]:
        """Raises ValueError naming the line for a record without text and for a repeated id."""
        seen: set[str] = set()
        for path in self.files:
            for place, identity, text in read_texts(path, self.role):
                key = identity or text_id(text)
                if key not in seen:
                    seen.add(key)
                    yield key, text
                elif identity is not None:
                    raise ValueError(f"{place}: the id {identity!r} appears more than once")

    def titles(self) -> dict[str, str]:
        found = {}
        for path in self.files:
            for _, identity, title, text in read_titled(path, self.role):
                if title.strip():
                    found[identity or text_id(joined(title, text))] = title
        return found


@dataclass(frozen=True)
class PoolTexts:
    """Every distinct candidate (or query) text of the datasets' examples, in their order."""

    datasets: Sequence[Any]
    role: str
    name: str = POOL

    @property
    def files(self) -> Sequence[Path]:
        return dataset_files(self.datasets)

    def texts(self) -> Iterator[tuple[str, str]]:
        """Raises ConfigError if two different queries have the same id."""
        seen: set[bytes] = set()
        sources: dict[str, str] = {}
        for dataset in self.datasets:
            for example in dataset.examples():
                several = [example.query] if self.role == "query" else example.candidates
                for text in several:
                    key = text_key(text)
                    if key in seen:
                        continue
                    seen.add(key)
                    if self.role != "query":
                        yield text_id(text), text
                        continue
                    place = f"datasets.{dataset.name}{f' ({example.source})' if example.source else ''}"
                    if (first := sources.setdefault(example.id, place)) is not place:
                        raise ConfigError(
                            [
                                f"{place}: the id {example.id!r} belongs to another query in {first}; set "
                                f"datasets.{dataset.name}.id to a field with unique values, or remove the ids"
                            ]
                        )
                    yield example.id, text

    def titles(self) -> dict[str, str]:
        """Empty, since examples have texts only."""
        return {}


@dataclass(frozen=True)
class OwnTexts:
    """The corpora (or queries) of the datasets themselves, such as those of a BEIR folder."""

    datasets: Sequence[Any]
    role: str
    name: str = OWN

    @property
    def files(self) -> Sequence[Path]:
        return dataset_files(self.datasets)

    def texts(self) -> Iterator[tuple[str, str]]:
        """Raises ConfigError for a dataset without a corpus and for an id in two datasets."""
        what = "corpus" if self.role == "passage" else "queries"
        seen: set[str] = set()
        for dataset in self.datasets:
            own = getattr(dataset, what, None)
            if not callable(own):
                raise ConfigError([f"datasets.{dataset.name} has no {what}; choose {POOL} or a file"])
            for identity, text in own():
                if identity in seen:
                    raise ConfigError(
                        [f"datasets.{dataset.name}: the id {identity!r} of its {what} appears more than once"]
                    )
                seen.add(identity)
                yield identity, text

    def titles(self) -> dict[str, str]:
        titled = [dataset for dataset in self.datasets if self.role == "passage" and isinstance(dataset, HasTitles)]
        return {identity: title for dataset in titled for identity, title in dataset.titles() if title.strip()}


def dataset_files(datasets: Sequence[object]) -> list[Path]:
    """Returns the known input files of the datasets."""
    found: list[Path] = []
    for dataset in datasets:
        found.extend(getattr(dataset, "files", None) or ())
        for name in ("path", "corpus"):
            path = getattr(dataset, name, None)
            if isinstance(path, str):
                found.append(Path(path))
    return found


def check_source(value: str, key: str) -> None:
    """Raises FileNotFoundError naming `key` unless `value` is pool, own, or an existing file, folder or glob."""
    if value not in (POOL, OWN):
        files.find(value, key)


def open_source(value: str, role: str, datasets: Sequence[object]) -> TextSource:
    """Returns the texts of a config key. Raises ConfigError for texts of datasets if there are no datasets."""
    if value not in (POOL, OWN):
        return FileTexts(value, role)
    if not datasets:
        raise ConfigError(
            [f"{value} takes texts from datasets, but datasets is empty; choose datasets, or give a file"]
        )
    return PoolTexts(datasets, role) if value == POOL else OwnTexts(datasets, role)
