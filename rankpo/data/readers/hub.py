"""HubRecords: records of files or of a hub dataset, with the treatment of bad records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rankpo.data.readers import files
from rankpo.data.readers.hub_source import HubSource
from rankpo.data.readers.passes import MAX_SHOWN, BadRecords
from rankpo.data.shape import Declares


@dataclass(kw_only=True)
class HubRecords(Declares):
    """Records of files (`path`) or of a hub dataset (`hub`, with its `split` and `revision`).

    limit: the number of examples to read; None reads all. weight: the number of times that an epoch shows each example.
    on_bad_record: `error` collects up to twenty bad records and raises BadRecords, `skip` excludes them; `bad` lists them.
    Raises FileNotFoundError at construction for a missing path, ValueError for wrong keys.
    """

    name: str
    path: str | Sequence[str] | None = None
    hub: str | None = None
    split: str | None = None
    revision: str | None = None
    limit: int | None = None
    weight: float = 1.0
    on_bad_record: str = "error"

    def __post_init__(self) -> None:
        if (self.path is None) == (self.hub is None):
            raise ValueError(
                f"set either path (files) or hub (a dataset of the hub) to the source of the records; got path={self.path}, "
                f"hub={self.hub}"
            )
        self._one_of("on_bad_record", ("error", "skip"))
        self._positive("limit")
        if self.hub is not None and self.split is None:
            raise ValueError("split must be set with hub, such as train")
        self.files = [] if self.path is None else files.find(self.path, "path")
        self.bad: list[str] = []

    def _one_of(self, key: str, allowed: Sequence[str]) -> None:
        if getattr(self, key) not in allowed:
            raise ValueError(f"{key} must be one of {', '.join(allowed)}, got {getattr(self, key)!r}")

    def _positive(self, key: str) -> None:
        if getattr(self, key) is not None and getattr(self, key) < 1:
            raise ValueError(f"{key} must be >= 1 or null, got {getattr(self, key)}")

    def content(self) -> str:
        """A fingerprint of the contents; for a hub dataset, its own fingerprint."""
        return self._loaded()._fingerprint if self.hub is not None else files.content_fingerprint(self.files)

    def records(self) -> Iterator[tuple[str, Any]]:
        """Yields (place, record) for every record; an invalid one is a NotARecord."""
        if self.hub is None:
            for path in self.files:
                yield from files.records(path)
            return
        for index, record in enumerate(self._loaded()):
            yield f"{self.hub}[{index}]", record

    def _loaded(self) -> Any:
        """The hub dataset, downloaded once into the cache of the hub. Raises ValueError if it cannot be loaded."""
        source = HubSource(
            name=str(self.hub),
            key=f"datasets.{self.name}",
            config=getattr(self, "config", None),  # A key of datasets with several configurations.
            split=self.split,
            revision=self.revision,
            remedy=f"with a local copy, set datasets.{self.name}.hub=null datasets.{self.name}.path=…",
        )
        return source.rows

    def note(self, place: str, error: ValueError) -> None:
        """Stores a bad record. Raises BadRecords after the twentieth."""
        self.bad.append(f"datasets.{self.name}: {place}: {error}")
        if self.on_bad_record == "error" and len(self.bad) >= MAX_SHOWN:
            self.complain()

    def complain(self) -> None:
        """Raises BadRecords if there were bad records and on_bad_record is `error`."""
        if self.bad and self.on_bad_record == "error":
            more = "" if len(self.bad) < MAX_SHOWN else "\n(only the first twenty are shown)"
            raise BadRecords("\n".join(self.bad) + more)
