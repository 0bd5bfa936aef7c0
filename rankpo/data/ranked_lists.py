"""Lists of passages with their order, from files or a hub: our own records, and RankLLM's conversations.

{"id", "query", "passages": [text or {"docid", "title", "text"}], "ranking": [2, 0, 1]}      positions, best first
{"id", "conversations": [{"from": "system" | "human" | "gpt", "value"}]}                    also role and content
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import xxhash

from rankpo.data import files
from rankpo.data.fields import BadRecord, numbers, text
from rankpo.data.list_conversations import RankedRecord, from_conversation
from rankpo.data.sources import MAX_SHOWN, BadRecords
from rankpo.types import Example

VERSION = 1  # raise it with any change of what a record becomes


@dataclass(kw_only=True)
class RankedLists:
    """Records of files (`path`) or of a hub dataset (`hub`, with its `split` and `revision`).

    relevance_from_rank: `reciprocal`, 1/r, or `linear`, (n - r)/(n - 1), of the rank r from 1; passages that a partial
    ranking does not name stand together below it, at 0. A record's own `scores` are used as they are.
    on_bad_record: `error` collects up to twenty and raises BadRecords once, `skip` leaves them out; `bad` lists them.
    Raises FileNotFoundError at construction for a path that is not there, ValueError for wrong keys.
    """

    name: str
    path: str | Sequence[str] | None = None
    hub: str | None = None
    split: str | None = None
    revision: str | None = None
    relevance_from_rank: str = "reciprocal"
    limit: int | None = None
    weight: float = 1.0
    on_bad_record: str = "error"

    def __post_init__(self) -> None:
        if (self.path is None) == (self.hub is None):
            raise ValueError(f"path or hub, one of them, must say where the records are; got {self.path}, {self.hub}")
        for key, allowed in (
            ("relevance_from_rank", ("reciprocal", "linear")),
            ("on_bad_record", ("error", "skip")),
        ):
            if getattr(self, key) not in allowed:
                raise ValueError(f"{key} must be one of {', '.join(allowed)}, got {getattr(self, key)!r}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be >= 1 or null, got {self.limit}")
        if self.hub is not None and self.split is None:
            raise ValueError("split must be set with hub, such as train")
        self.files = [] if self.path is None else files.find(self.path, "path")
        self.bad: list[str] = []

    def fingerprint(self) -> str:
        """Of the contents and of the settings that read them. A hub dataset is named by its own fingerprint."""
        content = self._loaded()._fingerprint if self.hub is not None else files.content_fingerprint(self.files)
        settings = [self.relevance_from_rank, self.limit, self.on_bad_record]
        return xxhash.xxh3_128_hexdigest(json.dumps([VERSION, content, *settings]).encode())

    def examples(self) -> Iterator[Example]:
        """Streams the examples. Raises BadRecords at the end of the bad ones, or after twenty."""
        self.bad = []
        yield from islice(self._examples(), self.limit)
        self._complain()

    def _examples(self) -> Iterator[Example]:
        for place, record in self._records():
            try:
                if isinstance(record, files.NotARecord):
                    raise BadRecord(str(record))
                parsed = from_conversation(record) if "conversations" in record else native(record)
                relevance = self._relevance(parsed)
            except BadRecord as error:
                self._note(place, error)
                continue
            name = record.get("id")
            yield Example(
                query=parsed.query,
                candidates=parsed.passages,
                relevance=relevance,
                id=str(name) if name is not None else f"{self.name}:{place}",
                source=place,
            )

    def _relevance(self, record: RankedRecord) -> tuple[float, ...]:
        if record.scores is not None:
            return record.scores
        count = len(record.passages)
        values = [0.0] * count
        for rank, place in enumerate(record.ranking, 1):
            values[place] = 1 / rank if self.relevance_from_rank == "reciprocal" else (count - rank) / (count - 1)
        return tuple(values)

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
            return datasets.load_dataset(str(self.hub), split=self.split, revision=self.revision)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"datasets.{self.name}: hub={self.hub} cannot be loaded: {str(error).splitlines()[0]}; "
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


def native(record: Mapping[str, Any]) -> RankedRecord:
    """Our own form. Raises BadRecord naming what is wrong."""
    for key in ("query", "passages"):
        if key not in record:
            raise BadRecord(f"no field {key!r} (found: {', '.join(record) or 'nothing'})")
    query = text(record["query"], "query")
    given = record["passages"]
    if not isinstance(given, list) or len(given) < 2:
        raise BadRecord(
            f"passages must be a list of two or more, got {len(given) if isinstance(given, list) else given!r}"
        )
    passages = tuple(_passage(item, f"passages[{index}]") for index, item in enumerate(given))
    scores = record.get("scores")
    if scores is None and record.get("ranking") is None:
        raise BadRecord("needs a ranking (positions, best first) or scores (one number for each passage)")
    found = None if scores is None else tuple(numbers(scores, len(passages), "scores", "passages"))
    return RankedRecord(query, passages, _ranking(record.get("ranking") or [], len(passages)), found)


def _passage(item: Any, place: str) -> str:
    if isinstance(item, Mapping):
        title = str(item.get("title") or "").strip()
        return f"{title} {text(item.get('text'), f'{place}.text')}".strip()
    return text(item, place)


def _ranking(given: Any, count: int) -> tuple[int, ...]:
    if not isinstance(given, list) or any(isinstance(item, bool) or not isinstance(item, int) for item in given):
        raise BadRecord(f"ranking must be a list of positions, got {given!r}")
    outside = [item for item in given if not 0 <= item < count]
    if outside:
        raise BadRecord(f"ranking names position {outside[0]}; allowed: 0 to {count - 1}")
    if len(set(given)) < len(given):
        twice = next(item for item in given if given.count(item) > 1)
        raise BadRecord(f"ranking names position {twice} twice")
    return tuple(given)
