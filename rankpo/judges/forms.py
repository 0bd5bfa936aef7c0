"""Forms of the records of annotations: the JSON objects in the files of task=annotate and of the judge's cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NotRequired, TypedDict

from rankpo.types import Prompt


class Answer(TypedDict):
    """An answer of a judge, in the cache. prompt_hash: of the request. seconds, retries: of the whole call."""

    prompt_hash: str
    text: str
    model: str
    usage: Mapping[str, int]
    seconds: float
    retries: int


class Paid(TypedDict):
    """A line of cost.jsonl: one answered call. call: its number, from 1."""

    call: int
    prompt_hash: str
    model: str
    usage: Mapping[str, int]
    seconds: float
    retries: int
    dollars: float


class Call(TypedDict):
    """One answer about a pair. order: "given" or "swapped". preferred: "A" or "B", in the shown order."""

    order: str
    preferred: str
    confidence: float | None
    text: str
    model: str
    prompt_hash: str


class Annotation(TypedDict):
    """A judged pair, in RankPO's keys. p: the probability that passage 1 is preferred. agree: whether both orders
    prefer the same passage. asked: digest of the request, see `annotation.asked`.
    """

    asked: NotRequired[str]
    query_id: str
    passage_id1: str
    passage_id2: str
    query: Prompt
    passage1: str
    passage2: str
    preferred: str
    confidence_score: float | None
    comparison: str
    passage_rank1: int
    passage_rank2: int
    p: float
    agree: bool
    order: str
    model: str
    calls: Sequence[Call]
    suspicious: NotRequired[Mapping[str, Sequence[str]]]
    prompt: NotRequired[str]


class ListCall(TypedDict):
    """One answer about a list. order: "given" or "reversed". ranking: positions in the shown order, best first."""

    order: str
    ranking: Sequence[int]
    text: str
    model: str
    prompt_hash: str


class ListAnnotation(TypedDict):
    """A judged list. ranking: positions in `passages`, best first. agreement: see `orders.Order`. passage_ranks: in the
    ranking that the list was drawn from. asked: digest of the request, see `list_annotation.asked_list`.
    """

    asked: NotRequired[str]
    query_id: str
    passage_ids: Sequence[str]
    query: Prompt
    passages: Sequence[str]
    ranking: Sequence[int]
    agreement: float | None
    passage_ranks: Sequence[int]
    order: str
    model: str
    calls: Sequence[ListCall]


class Scored(TypedDict):
    """A line of scores.jsonl: the scores of a query's candidates, or of a prompt's completions."""

    key: str
    prompt_id: NotRequired[str]
    scores: Sequence[float]


class Share(TypedDict):
    """A count and total, with the share and its 95 % interval. p_value: for an unbiased judge, if applicable."""

    count: int
    of: int
    share: float | None
    interval: Sequence[float]
    p_value: NotRequired[float | None]


class Agreement(TypedDict):
    """The report on annotations: position bias, agreement, confidence."""

    pairs: int
    first_shown_preferred: Share
    orders_agree: Share
    agrees_with_ranking: Share
    agrees_with_ranking_by_gap: Mapping[str, Share]
    longer_passage_preferred: Share
    confidence: Mapping[str, int]
    confidence_missing: int
