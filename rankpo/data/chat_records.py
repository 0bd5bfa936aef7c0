"""Datasets of prompts and completions, from files or a hub: `_target_` of hh, shp, ultrabin, oasst, imdb and chat."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import xxhash

from rankpo.data import chat_formats, files, oasst
from rankpo.data.chat_formats import Chat
from rankpo.data.fields import BadRecord
from rankpo.data.sources import MAX_SHOWN, BadRecords
from rankpo.types import Example, Prompt

VERSION = 1  # raise it with any change of what a record becomes
FORMATS = ("auto", *chat_formats.FORMATS, "oasst")


@dataclass(kw_only=True)
class ChatRecords:
    """Records of files (`path`) or of a hub dataset (`hub`, with its `config`, `split` and `revision`).

    format: one of FORMATS, or auto, decided by the keys of the first record. split: of a hub dataset; records of files
    that name a split of their own are left out unless it is this one. max_pairs: examples of one prompt at most, the
    first ones. limit: the first so many examples. on_bad_record: `error` collects up to twenty and raises BadRecords
    once, `skip` leaves them out; `bad` lists them. filtered: counts what split, format and max_pairs left out.
    Raises FileNotFoundError at construction for a path that is not there, ValueError for wrong keys.
    """

    name: str
    path: str | Sequence[str] | None = None
    hub: str | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    format: str = "auto"
    max_pairs: int | None = None
    limit: int | None = None
    weight: float = 1.0
    on_bad_record: str = "error"

    def __post_init__(self) -> None:
        if (self.path is None) == (self.hub is None):
            raise ValueError(f"path or hub, one of them, must say where the records are; got {self.path}, {self.hub}")
        for key, allowed in (("format", FORMATS), ("on_bad_record", ("error", "skip"))):
            if getattr(self, key) not in allowed:
                raise ValueError(f"{key} must be one of {', '.join(allowed)}, got {getattr(self, key)!r}")
        for key in ("max_pairs", "limit"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise ValueError(f"{key} must be >= 1 or null, got {getattr(self, key)}")
        if self.hub is not None and self.split is None:
            raise ValueError("split must be set with hub, such as train")
        self.files = [] if self.path is None else files.find(self.path, "path")
        self.bad: list[str] = []
        self.filtered = 0

    def fingerprint(self) -> str:
        """Of the contents and of the settings that choose and read them. A hub dataset is named by its revision."""
        content = self._loaded()._fingerprint if self.hub is not None else files.content_fingerprint(self.files)
        settings = [self.split, self.format, self.max_pairs, self.limit, self.on_bad_record]
        return xxhash.xxh3_128_hexdigest(json.dumps([VERSION, content, *settings]).encode())

    def examples(self) -> Iterator[Example]:
        """Streams the examples. Raises BadRecords at the end of the bad ones, or after twenty."""
        self.bad, self.filtered = [], 0
        for place, chat in islice(self._kept(), self.limit):
            yield Example(
                query=chat.prompt,
                candidates=chat.completions,
                relevance=chat.relevance,
                id=f"{self.name}:{place}",
                source=place,
            )
        self._complain()

    def _kept(self) -> Iterator[tuple[str, Chat]]:
        seen: Counter[Prompt] = Counter()
        for place, chat in self._grouped(self._chats()):
            if self.max_pairs is not None:
                seen[chat.prompt] += 1
                if seen[chat.prompt] > self.max_pairs:
                    self.filtered += 1
                    continue
            yield place, chat

    def _grouped(self, chats: Iterable[tuple[str, Chat]]) -> Iterator[tuple[str, Chat]]:
        """Records of one group, wherever they stand, as one example; it comes where a stream of them ends."""
        groups: dict[str, tuple[str, list[Chat]]] = {}
        for place, chat in chats:
            if chat.group is None:
                yield place, chat
                continue
            first = groups.setdefault(chat.group, (place, []))[1]
            if first and first[0].prompt != chat.prompt:
                self._note(place, BadRecord(f"prompt_id {chat.group!r} has another prompt in {groups[chat.group][0]}"))
                continue
            first.append(chat)
        for place, several in groups.values():
            texts = [text for chat in several for text in chat.completions]
            relevance = [value for chat in several for value in chat.relevance]
            yield place, Chat(several[0].prompt, tuple(texts), tuple(relevance))

    def _chats(self) -> Iterator[tuple[str, Chat]]:
        if self.format == "oasst":
            yield from oasst.ranked_replies(self._good(self._records()))
            return
        chosen, kind = self.format, None
        for place, record in self._good(self._records()):
            try:
                if chosen == "auto":
                    chosen = chat_formats.detect(record)
                kind = kind or record.get("type")
                if chosen == "halos" and record.get("type") != kind:
                    raise BadRecord(f"type is {record.get('type')!r} in a file of {kind!r}")
                chat = chat_formats.FORMATS[chosen](record)
            except BadRecord as error:
                self._note(place, error)
                continue
            if chat is None:
                self.filtered += 1
            else:
                yield place, chat

    def _good(self, records: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for place, record in records:
            if isinstance(record, files.NotARecord):
                self._note(place, record)
            elif self.hub is None and self.split is not None and record.get("split", self.split) != self.split:
                self.filtered += 1
            else:
                yield place, record

    def _records(self) -> Iterator[tuple[str, Any]]:
        if self.hub is None:
            for path in self.files:
                yield from files.records(path)
            return
        for index, record in enumerate(self._loaded()):
            yield f"{self.hub}[{index}]", record

    def _loaded(self) -> Any:
        """The hub dataset, downloaded once into the hub's own cache. Raises ValueError where it cannot be had."""
        try:
            import datasets
        except ImportError as error:
            raise ValueError(f"hub={self.hub} needs the package datasets: pip install 'rankpo[hub]'") from error
        datasets.disable_progress_bars()
        try:
            return datasets.load_dataset(str(self.hub), self.config, split=self.split, revision=self.revision)
        except (OSError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise ValueError(
                f"datasets.{self.name}: hub={self.hub} cannot be loaded: {first}; "
                f"with a local copy, set datasets.{self.name}.hub=null datasets.{self.name}.path=…"
            ) from error

    def _note(self, place: str, error: ValueError) -> None:
        self.bad.append(f"datasets.{self.name}: {place}: {error}")
        if self.on_bad_record == "error" and len(self.bad) >= MAX_SHOWN:
            self._complain()

    def _complain(self) -> None:
        if self.bad and self.on_bad_record == "error":
            more = "" if len(self.bad) < MAX_SHOWN else "\n(only the first twenty are shown)"
            raise BadRecords("\n".join(self.bad) + more)
