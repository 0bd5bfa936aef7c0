"""Datasets of prompts and completions from files or a hub, the `_target_` of hh, shp, ultrabin, oasst, imdb and chat."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import xxhash

from rankpo.data.readers import chat_formats, files, oasst
from rankpo.data.readers.chat_formats import Chat
from rankpo.data.readers.chat_turns import unused_keys
from rankpo.data.readers.fields import BadRecord
from rankpo.data.readers.hub import HubRecords
from rankpo.data.readers.passes import PassReport
from rankpo.data.relevance import threshold
from rankpo.types import Example, Prompt

VERSION = 3  # raise it with any change of what a record becomes
FORMATS = ("auto", *chat_formats.FORMATS, "oasst")


@dataclass(kw_only=True)
class ChatRecords(HubRecords):
    """Prompts with completions as `Example`s.

    config: the configuration of a hub dataset that has several. format: one of FORMATS; `auto` detects it by the keys of
    the first record. split: records of files with the field `split` are used only if its value is this one.
    train_turns: the assistant's turns to train on in a conversation, the `last` one or `all`. Each is the completion of
    an example whose prompt is all turns before it; turns with weight 0 or train false are excluded.
    max_pairs: the largest number of examples of one prompt; the first ones are used. relevant_from: the smallest reward
    of a desirable completion, for losses that need a threshold. filtered: counts of records that split, format, flags and
    max_pairs excluded. unused: fields that no reader used, with the number of records that have them.
    """

    config: str | None = None
    format: str = "auto"
    train_turns: str = "last"
    max_pairs: int | None = None
    relevant_from: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._one_of("format", FORMATS)
        self._one_of("train_turns", ("last", "all"))
        self._positive("max_pairs")
        self.filtered = 0
        self.unused: Counter[str] = Counter()

    @property
    def report(self) -> PassReport:
        """The report of the last pass, which is stored with the table and printed before training."""
        fields = [f"{name} ({count:,} records)" for name, count in self.unused.items()]
        return PassReport(filtered=self.filtered, places=list(self.bad), unused=fields)

    def fingerprint(self) -> str:
        """A fingerprint of the contents and of the settings that select and read them. A hub dataset has its revision."""
        settings = [self.split, self.format, self.train_turns, self.max_pairs, self.relevant_from]
        settings += [self.limit, self.on_bad_record]
        return xxhash.xxh3_128_hexdigest(json.dumps([VERSION, self.content(), *settings]).encode())

    def examples(self) -> Iterator[Example]:
        """Streams the examples. Raises BadRecords at the end if there were bad records, or after twenty of them."""
        self.bad, self.filtered, self.unused = [], 0, Counter()
        for place, chat in islice(self._kept(), self.limit):
            yield Example(
                query=chat.prompt,
                candidates=chat.completions,
                relevance=chat.relevance,
                id=f"{self.name}:{place}" if chat.place is None else f"{self.name}:{place}#{chat.place}",
                source=place,
                relevant=threshold(chat.relevance, self.relevant_from),
                finished=chat.finished,
            )
        self.complain()

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
        """Merges the records of each group, in any order, into one example."""
        groups: dict[str, tuple[str, list[Chat]]] = {}
        for place, chat in chats:
            if chat.group is None:
                yield place, chat
                continue
            first = groups.setdefault(chat.group, (place, []))[1]
            if first and first[0].prompt != chat.prompt:
                self.note(place, BadRecord(f"prompt_id {chat.group!r} has another prompt in {groups[chat.group][0]}"))
                continue
            first.append(chat)
        for place, several in groups.values():
            texts = [text for chat in several for text in chat.completions]
            relevance = [value for chat in several for value in chat.relevance]
            finished = [whole for chat in several for whole in chat.finished or (True,) * len(chat.completions)]
            whole = None if all(finished) else tuple(finished)
            yield place, Chat(several[0].prompt, tuple(texts), tuple(relevance), finished=whole)

    def _chats(self) -> Iterator[tuple[str, Chat]]:
        if self.format == "oasst":
            yield from oasst.ranked_replies(self._good(self.records()))
            return
        chosen, kind = self.format, None
        for place, record in self._good(self.records()):
            try:
                if chosen == "auto":
                    chosen = chat_formats.detect(record)
                kind = kind or record.get("type")
                if chosen == "halos" and record.get("type") != kind:
                    raise BadRecord(f"type is {record.get('type')!r} in a file of {kind!r}")
                chats = self._of(chosen, record)
            except BadRecord as error:
                self.note(place, error)
                continue
            self.unused.update(unused_keys(record, ("split", *chat_formats.USED.get(chosen, record))))
            self.filtered += not chats
            yield from ((place, chat) for chat in chats)

    def _of(self, chosen: str, record: Mapping[str, object]) -> list[Chat]:
        """The examples of a record: none if it is excluded, several if each turn of the assistant is one."""
        if chosen == "messages" and self.train_turns == "all" and "text" not in record:
            return chat_formats.trained_turns(record, "all")
        chat = chat_formats.FORMATS[chosen](record)
        return [] if chat is None else [chat]

    def _good(self, records: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Mapping[str, object]]]:
        for place, record in records:
            if isinstance(record, files.NotARecord):
                self.note(place, record)
            elif self.hub is None and self.split is not None and record.get("split", self.split) != self.split:
                self.filtered += 1
            else:
                yield place, record
