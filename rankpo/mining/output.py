"""Mined negatives as training files: one line per query, or per positive for tuples."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rankpo.mining.data import MiningData
from rankpo.mining.pipeline import Mined
from rankpo.storage.atomic import replacing


def contrastive(data: MiningData, item: Mined) -> Iterator[dict[str, object]]:
    """RankPO's format, with all positives and the query's id."""
    query, positives, negatives = _texts(data, item)
    record = {"id": data.queries[item.query].id, "query": query, "positives": positives, "negatives": negatives}
    yield {**record, **_prompt(data, item)}


def pos_neg(data: MiningData, item: Mined) -> Iterator[dict[str, object]]:
    """FlagEmbedding's format, with scores if every candidate of the line has one."""
    query, positives, negatives = _texts(data, item)
    record: dict[str, object] = {"id": data.queries[item.query].id, "query": query, "pos": positives, "neg": negatives}
    scores = [*item.positives.tolist(), *(negative.score for negative in item.negatives)]
    if all(math.isfinite(score) for score in scores):
        rounded = [_rounded(score) for score in scores]
        record.update(pos_scores=rounded[: len(positives)], neg_scores=rounded[len(positives) :])
    yield {**record, **_prompt(data, item)}


def triplet(data: MiningData, item: Mined) -> Iterator[dict[str, object]]:
    query, positives, negatives = _texts(data, item)
    for positive in positives:
        for negative in negatives:
            yield {"anchor": query, "positive": positive, "negative": negative, **_prompt(data, item)}


def n_tuple(data: MiningData, item: Mined) -> Iterator[dict[str, object]]:
    query, positives, negatives = _texts(data, item)
    numbered = {f"negative_{number}": text for number, text in enumerate(negatives, 1)}
    for positive in positives:
        yield {"anchor": query, "positive": positive, **numbered, **_prompt(data, item)}


def labeled_list(data: MiningData, item: Mined) -> Iterator[dict[str, object]]:
    query, positives, negatives = _texts(data, item)
    labels = [1] * len(positives) + [0] * len(negatives)
    yield {"query": query, "documents": positives + negatives, "labels": labels, **_prompt(data, item)}


def ids(data: MiningData, item: Mined) -> Iterator[dict[str, object]]:
    """Tevatron's."""
    query = data.queries[item.query]
    yield {
        "query_id": query.id,
        "query_text": query.text,
        "positive_document_ids": [data.ids[number] for number in query.positives],
        "negative_document_ids": [data.ids[negative.number] for negative in item.negatives],
        **_prompt(data, item),
    }


FORMATS: dict[str, Callable[[MiningData, Mined], Iterator[dict[str, object]]]] = {
    "contrastive": contrastive,
    "pos_neg": pos_neg,
    "triplet": triplet,
    "n_tuple": n_tuple,
    "labeled_list": labeled_list,
    "ids": ids,
}


def meta(data: MiningData, item: Mined) -> dict[str, object]:
    """Returns the origin of each negative of a query."""
    query = data.queries[item.query]
    return {
        "id": query.id,
        "positives": [
            {"id": data.ids[number], "score": _known(score)}
            for number, score in zip(query.positives, item.positives.tolist(), strict=True)
        ],
        "margin_from": _known(item.margin_from),
        "candidates": item.num_candidates,
        "removed": dict(item.removed),
        "negatives": [
            {
                "id": data.ids[negative.number],
                "rank": negative.rank,
                "source_score": _known(negative.source_score),
                "score": _known(negative.score),
                "cluster": negative.cluster,
                "mark": negative.mark or None,
            }
            for negative in item.negatives
        ],
    }


def corpus(data: MiningData, mined: Sequence[Mined]) -> Iterator[dict[str, object]]:
    """Yields each text that records of ids refer to once, so that the output is complete without other files."""
    used: dict[int, None] = {}
    for item in mined:
        used.update(dict.fromkeys(data.queries[item.query].positives))
        used.update(dict.fromkeys(negative.number for negative in item.negatives))
    for number in used:
        yield {"docid": data.ids[number], "text": data.texts[number]}


def write(path: Path, form: str, data: MiningData, mined: Sequence[Mined], num_negatives: int, keep_empty: bool) -> int:
    """Writes `path`, NAME.meta.jsonl and, for ids, NAME.corpus.jsonl atomically. Returns the number of written queries.

    keep_empty: also writes queries without a negative, if the format allows it. n_tuple needs `num_negatives` columns
    in every line, so queries with fewer negatives are omitted.
    """
    least = num_negatives if form == "n_tuple" else 0 if keep_empty and form != "triplet" else 1
    written = [item for item in mined if len(item.negatives) >= least]
    lines = (record for item in written for record in FORMATS[form](data, item))
    _write_lines(path, lines)
    if form == "ids":
        _write_lines(path.with_suffix(".corpus.jsonl"), corpus(data, written))
    _write_lines(path.with_suffix(".meta.jsonl"), (meta(data, item) for item in written))
    return len(written)


def _write_lines(path: Path, records: Iterator[dict[str, object]]) -> None:
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")


def _prompt(data: MiningData, item: Mined) -> dict[str, str]:
    """Returns the prompt in the query's records, if any."""
    prompt = data.queries[item.query].prompt
    return {} if prompt is None else {"prompt": prompt}


def _texts(data: MiningData, item: Mined) -> tuple[str, list[str], list[str]]:
    query = data.queries[item.query]
    positives = [data.texts[number] for number in query.positives]
    return query.text, positives, [data.texts[negative.number] for negative in item.negatives]


def _rounded(score: float) -> float:
    return float(f"{score:.9g}")


def _known(score: float) -> float | None:
    return _rounded(score) if math.isfinite(score) else None
