"""Records of files or of a hub dataset, and what becomes of bad ones: the part that its datasets share."""

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

    limit: the first so many examples. weight: how often an epoch shows each. on_bad_record: `error` collects up to
    twenty and raises BadRecords once, `skip` leaves them out; `bad` lists them.
    Raises FileNotFoundError at construction for a path that is not there, ValueError for wrong keys.
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
                f"set either path (files) or hub (a data set of the hub) to say where the records are; got path={self.path}, hub={self.hub}"
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
        """A fingerprint of the contents; a hub dataset is named by its own."""
        return self._loaded()._fingerprint if self.hub is not None else files.content_fingerprint(self.files)

    def records(self) -> Iterator[tuple[str, Any]]:
        """(place, record) of every record; what is none is a NotARecord."""
        if self.hub is None:
            for path in self.files:
                yield from files.records(path)
            return
        for index, record in enumerate(self._loaded()):
            yield f"{self.hub}[{index}]", record

    def _loaded(self) -> Any:
        """The hub dataset, downloaded once into the hub's own cache. Raises ValueError where it cannot be had."""
        source = HubSource(
            name=str(self.hub),
            key=f"datasets.{self.name}",
            config=getattr(self, "config", None),  # a key of those datasets that come in several
            split=self.split,
            revision=self.revision,
            remedy=f"with a local copy, set datasets.{self.name}.hub=null datasets.{self.name}.path=…",
        )
        return source.rows

    def note(self, place: str, error: ValueError) -> None:
        """Remembers a bad record. Raises BadRecords where there are too many to go on."""
        self.bad.append(f"datasets.{self.name}: {place}: {error}")
        if self.on_bad_record == "error" and len(self.bad) >= MAX_SHOWN:
            self.complain()

    def complain(self) -> None:
        """Raises BadRecords if there were any that are not to be skipped."""
        if self.bad and self.on_bad_record == "error":
            more = "" if len(self.bad) < MAX_SHOWN else "\n(only the first twenty are shown)"
            raise BadRecords("\n".join(self.bad) + more)
