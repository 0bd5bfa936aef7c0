"""HubSource: records of a dataset of the Hugging Face hub, or of a local copy, read with the datasets library."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from rankpo.data.readers.files import content_fingerprint

if TYPE_CHECKING:
    import datasets

SAVED = ("state.json", "dataset_dict.json")  # Files of a folder of `save_to_disk` with one split, or with several.


@dataclass(frozen=True, kw_only=True)
class HubSource:
    """A dataset of the hub as a source of records.

    name: the id of the dataset on the hub, or a folder with a copy of its repository or the output of `save_to_disk`.
    config, split, revision: arguments of `datasets.load_dataset`. streaming: reads records without a copy on disk.
    key: the config key of the dataset, for messages. remedy: the alternative that messages suggest.
    Raises ValueError at construction if the package datasets is missing or no split is given.
    """

    name: str
    key: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    streaming: bool = False
    remedy: str = (
        "without a network, give the folder of a copy as its name, or the files of one as datasets=[jsonl] with "
        "datasets.jsonl.path=…"
    )

    def __post_init__(self) -> None:
        if find_spec("datasets") is None:
            raise ValueError(f"{self.name} needs the package datasets: pip install 'rankpo[hub]'")
        if self.split is None:
            raise ValueError(f"split is not set, and {self.name} is a dataset of the hub; set split=train, or another")

    has_neighbours = False

    @property
    def place(self) -> Path:
        """The path that represents the dataset in messages and in rules for names."""
        return Path(self.name)

    @property
    def files(self) -> list[Path]:
        return [self.place]

    def records(self, path: Path) -> Iterator[tuple[str, object]]:
        """Yields (place, record) for every record, in the order of the dataset. path: the item of `files`."""
        for index, record in enumerate(self.rows):
            yield f"{self.name}[{index}]", record

    def content(self, corpora: Sequence[Path]) -> str:
        """A fingerprint of the content: of the revision of a dataset on the hub, or of the files of a folder."""
        rows = self.rows
        known = "" if self.streaming else str(rows._fingerprint)
        parts = [self.name, self.config, self.split, self.revision, known, self._of_folder()]
        return f"{xxhash.xxh3_128_hexdigest(json.dumps(parts).encode())}-{content_fingerprint(corpora)}"

    def _of_folder(self) -> list[tuple[str, int, int]]:
        """Name, size and time of each file of a local folder. The cache of the hub has a separate folder per revision."""
        files = sorted(path for path in self.place.rglob("*") if path.is_file()) if self.place.is_dir() else []
        return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]

    @cached_property
    def rows(self) -> datasets.Dataset | datasets.IterableDataset:
        """The dataset, downloaded once into the cache of the hub unless it is streamed. Raises ValueError on failure."""
        import datasets

        datasets.disable_progress_bars()
        try:
            if any((self.place / name).is_file() for name in SAVED):
                found = datasets.load_from_disk(self.name)  # Arrow files, read without a copy.
                return self._of_saved(found[self._split_of(found)] if isinstance(found, dict) else found)
            return datasets.load_dataset(
                self.name, self.config, split=self.split, revision=self.revision, streaming=self.streaming
            )
        except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            raise ValueError(f"{self.key}: {self.name} cannot be loaded: {reason}; {self.remedy}") from error

    def _split_of(self, found: Mapping[str, object]) -> str:
        """The name of the split in a saved folder. Raises ValueError if the folder has no such split."""
        if self.split not in found:
            raise ValueError(f"it has no split {self.split}; its splits: {', '.join(map(str, found))}")
        return str(self.split)

    def _of_saved(self, found: datasets.Dataset) -> datasets.Dataset | datasets.IterableDataset:
        return found.to_iterable_dataset() if self.streaming else found


def parts_of(name: str, revision: str | None, key: str) -> dict[str, list[str]]:
    """The splits of each config of a dataset of the hub, or of a folder with a copy of it. Raises ValueError."""
    datasets = import_module("datasets")
    try:
        configs = datasets.get_dataset_config_names(name, revision=revision)
        return {config: datasets.get_dataset_split_names(name, config, revision=revision) for config in configs}
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ValueError(
            f"{key}: {name} cannot be loaded: {reason}; without a network, give the folder of a copy as {key}.path"
        ) from error
