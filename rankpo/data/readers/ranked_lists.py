"""Ranked lists of passages from files or a hub, as records of rankpo or RankLLM's conversations.

{"id", "query", "passages": [text or {"docid", "title", "text"}], "ranking": [2, 0, 1]}      positions, best first
{"id", "conversations": [{"from": "system" | "human" | "gpt", "value"}]}                    also role and content
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import xxhash

from rankpo.data.readers import files
from rankpo.data.readers.fields import BadRecord, numbers, text
from rankpo.data.readers.hub import HubRecords
from rankpo.data.relevance import threshold
from rankpo.data.text.list_conversations import RankedRecord, from_conversation
from rankpo.types import Example

VERSION = 2  # raise it with any change of what a record becomes


@dataclass(kw_only=True)
class RankedLists(HubRecords):
    """Ranked lists as `Example`s.

    relevance_from_rank: the relevance of rank r, counted from 1, among n passages: `reciprocal` is 1/r, `linear` is
    (n - r)/(n - 1). Passages outside a partial ranking have relevance 0. The `scores` of a record are used unchanged.
    relevant_from: the smallest relevance (or score) of a relevant passage, for losses that need positives; with 1, only
    the first passage is relevant.
    """

    relevance_from_rank: str = "reciprocal"
    relevant_from: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._one_of("relevance_from_rank", ("reciprocal", "linear"))

    @property
    def relevant_label(self) -> float | None:
        return self.relevant_from

    def fingerprint(self) -> str:
        """A fingerprint of the contents and of the settings that read them."""
        settings = [self.relevance_from_rank, self.relevant_from, self.limit, self.on_bad_record]
        return xxhash.xxh3_128_hexdigest(json.dumps([VERSION, self.content(), *settings]).encode())

    def examples(self) -> Iterator[Example]:
        """Streams the examples. Raises BadRecords at the end if there were bad records, or after twenty of them."""
        self.bad = []
        yield from islice(self._examples(), self.limit)
        self.complain()

    def _examples(self) -> Iterator[Example]:
        for place, record in self.records():
            try:
                if isinstance(record, files.NotARecord):
                    raise BadRecord(str(record))
                parsed = from_conversation(record) if "conversations" in record else native(record)
                relevance = self._relevance(parsed)
            except BadRecord as error:
                self.note(place, error)
                continue
            name = record.get("id")
            yield Example(
                query=parsed.query,
                candidates=parsed.passages,
                relevance=relevance,
                id=str(name) if name is not None else f"{self.name}:{'_'.join(place.split())}",
                source=place,
                relevant=threshold(relevance, self.relevant_from),
            )

    def _relevance(self, record: RankedRecord) -> tuple[float, ...]:
        if record.scores is not None:
            return record.scores
        count = len(record.passages)
        values = [0.0] * count
        for rank, place in enumerate(record.ranking, 1):
            values[place] = 1 / rank if self.relevance_from_rank == "reciprocal" else (count - rank) / (count - 1)
        return tuple(values)


def native(record: Mapping[str, object]) -> RankedRecord:
    """A record in rankpo's format. Raises BadRecord with the problem."""
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


def _passage(item: object, place: str) -> str:
    if isinstance(item, Mapping):
        title = str(item.get("title") or "").strip()
        return f"{title} {text(item.get('text'), f'{place}.text')}".strip()
    return text(item, place)


def _ranking(given: object, count: int) -> tuple[int, ...]:
    if not isinstance(given, list) or any(isinstance(item, bool) or not isinstance(item, int) for item in given):
        raise BadRecord(f"ranking must be a list of positions, got {given!r}")
    outside = [item for item in given if not 0 <= item < count]
    if outside:
        raise BadRecord(f"ranking has position {outside[0]}; allowed: 0 to {count - 1}")
    if len(set(given)) < len(given):
        twice = next(item for item in given if given.count(item) > 1)
        raise BadRecord(f"ranking has position {twice} more than once")
    return tuple(given)
