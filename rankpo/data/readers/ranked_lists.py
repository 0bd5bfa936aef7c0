"""Ranked lists of passages from files or a hub, as records of rankpo, or RankLLM's conversations and results.

{"id", "query", "passages": [text or {"docid", "title", "text"}], "ranking": [2, 0, 1]}      positions, best first
{"id", "conversations": [{"from": "system" | "human" | "gpt", "value"}]}                    also role and content
{"query": {"qid", "text"}, "candidates": [{"docid", "score", "doc": {"title", "contents"}}]}   best first
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import xxhash

from rankpo.data.readers import files
from rankpo.data.readers.fields import BadRecord, numbers, text
from rankpo.data.readers.hub import HubRecords
from rankpo.data.readers.passes import PassReport
from rankpo.data.relevance import threshold
from rankpo.data.text.list_conversations import RankedRecord, from_conversation
from rankpo.types import Example

VERSION = 3  # raise it with any change of what a record becomes


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
        self.report = PassReport()
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
        self.bad, self.report = [], PassReport()
        for example in islice(self._examples(), self.limit):
            self.report.rows += 1
            yield example
        self.report.places = self.bad
        self.complain()

    def _examples(self) -> Iterator[Example]:
        for place, record in self.records():
            try:
                if isinstance(record, files.NotARecord):
                    raise BadRecord(str(record))
                layout = _layout(record)
                parsed, name = LAYOUTS[layout](record), _name(record)
                relevance, prompt = self._relevance(parsed), _prompt(record)
            except BadRecord as error:
                self.note(place, error)
                continue
            if layout not in self.report.formats:
                self.report.formats.append(layout)
            yield Example(
                query=parsed.query,
                candidates=parsed.passages,
                relevance=relevance,
                id=name if name is not None else f"{self.name}:{'_'.join(place.split())}",
                source=place,
                query_prompt=prompt,
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
    if scores is None and record["ranking"] == []:
        raise BadRecord("ranking is empty; it must have the position of at least one passage")
    found = None if scores is None else tuple(numbers(scores, len(passages), "scores", "passages"))
    return RankedRecord(query, passages, _ranking(record.get("ranking") or [], len(passages)), found)


def result(record: Mapping[str, object]) -> RankedRecord:
    """A result that RankLLM wrote: the candidates, each with its document, from the best one on. Raises BadRecord.

    Scores are not read, since RankLLM's are the numbers of the first stage or of the ranks.
    """
    asked, given = record["query"], record["candidates"]
    query = text(asked.get("text") if isinstance(asked, Mapping) else asked, "query.text")
    if not isinstance(given, list) or len(given) < 2:
        found = len(given) if isinstance(given, list) else repr(given)
        raise BadRecord(f"candidates must be a list of two or more, got {found}")
    passages = tuple(_document(item, f"candidates[{index}]") for index, item in enumerate(given))
    return RankedRecord(query, passages, tuple(range(len(passages))))


LAYOUTS: dict[str, Callable[[Mapping[str, object]], RankedRecord]] = {
    "ranking": native,
    "conversations": from_conversation,
    "results": result,
}
TEXTS = ("text", "segment", "contents", "content", "body", "passage")  # RankLLM's names of a document's text


def _layout(record: Mapping[str, object]) -> str:
    """The key of LAYOUTS for a record."""
    if "conversations" in record:
        return "conversations"
    return "results" if "candidates" in record and "passages" not in record else "ranking"


def _name(record: Mapping[str, object]) -> str | None:
    """The id of a record, or of RankLLM's query, if it has one."""
    asked = record.get("query")
    name = record.get("id", asked.get("qid") if isinstance(asked, Mapping) else None)
    return None if name is None else str(name)


def _prompt(record: Mapping[str, object]) -> str | None:
    """The prompt before the query, which replaces the model's. Raises BadRecord for a prompt that is no text."""
    prompt = record.get("prompt")
    if prompt is not None and not isinstance(prompt, str):
        raise BadRecord(f"prompt must be a text, got {type(prompt).__name__}")
    return prompt


def _document(item: object, place: str) -> str:
    """The text of a candidate of RankLLM, with its title. Raises BadRecord with the place."""
    document = item.get("doc") if isinstance(item, Mapping) else None
    if not isinstance(document, Mapping):
        raise BadRecord(f"{place} must have a doc with one of {', '.join(TEXTS)}")
    key = next((key for key in TEXTS if key in document), None)
    if key is None:
        raise BadRecord(f"{place}.doc has none of {', '.join(TEXTS)} (found: {', '.join(map(str, document))})")
    return _titled(document, text(document[key], f"{place}.doc.{key}"))


def _passage(item: object, place: str) -> str:
    return _titled(item, text(item.get("text"), f"{place}.text")) if isinstance(item, Mapping) else text(item, place)


def _titled(item: Mapping[str, object], content: str) -> str:
    return f"{str(item.get('title') or '').strip()} {content}".strip()


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
