"""Inspection of datasets: statistics of their examples, in words or tokens, and the reasons of bad records."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import xxhash

from rankpo.data.dataset import Pieces
from rankpo.data.readers.passes import PassReport
from rankpo.data.relevance import IRRELEVANT, RELEVANT, UNKNOWN
from rankpo.data.report import Report, dataset_report, quantiles
from rankpo.data.table import ExampleTable
from rankpo.types import Example

MAX_REASONS = 10
# Scripts without spaces, where each character counts as a word.
IDEOGRAPHS = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
WORD = re.compile(rf"[{IDEOGRAPHS}]|[^\s{IDEOGRAPHS}]+")
MAX_SHOWN = 160  # The number of characters of a text to print.
MAX_CANDIDATES = 4  # The number of candidates of the printed example.


def words_as_tokens() -> Pieces:
    """Pieces whose tokens are words, for an inspection without a model."""

    def tokenize(texts: Sequence[str]) -> list[list[int]]:
        return [[xxhash.xxh32_intdigest(word.encode()) >> 1 for word in WORD.findall(text)] for text in texts]

    return Pieces(tokenize=tokenize, query_prefix="", candidate_prefix="", fingerprint="words", own_prompts=True)


def inspect(table: ExampleTable, number: int, unit: str) -> Report:
    """The statistics of one dataset of a table, for JSON. number: as in `table.dataset`. unit: words or tokens."""
    found = dataset_report(table, number)
    found["lengths"] = {"unit": unit, **found.pop("tokens")}
    examples = np.flatnonzero(np.asarray(table.dataset) == number)
    stated = np.asarray(table.stated)
    starts, ends = np.asarray(table.offsets)[examples], np.asarray(table.offsets)[examples + 1]
    for name, code in (("positives", RELEVANT), ("negatives", IRRELEVANT), ("unknown", UNKNOWN)):
        totals = np.concatenate([[0], np.cumsum(stated == code)])
        counts = totals[ends] - totals[starts]
        found[f"{name}_per_query"] = quantiles(counts) if name != "unknown" else int((counts > 0).sum())
    found["repeated_examples"] = _repeated(table, examples)
    found["own_negatives_only"] = int(np.asarray(table.own_negatives)[examples].sum())
    return found


def _repeated(table: ExampleTable, examples: np.ndarray) -> int:
    """The number of examples with the same query, candidates and labels as an earlier one."""
    digests = np.empty(len(examples), dtype=np.uint64)
    candidates, relevance = np.asarray(table.candidates), np.asarray(table.relevance)
    for place, example in enumerate(examples.tolist()):
        slots = slice(int(table.offsets[example]), int(table.offsets[example + 1]))
        content = (
            int(table.query[example]).to_bytes(8, "little"),
            candidates[slots].tobytes(),
            relevance[slots].tobytes(),
        )
        digests[place] = xxhash.xxh3_64_intdigest(b"".join(content))
    return len(digests) - len(np.unique(digests))


def reading(met: PassReport) -> Report:
    """The report of reading a dataset: layout, fields, and bad records by reason with the first place of each."""
    reasons: Counter[str] = Counter()
    first: dict[str, str] = {}
    for line in met.places:
        place, reason = _split(line)
        kind = re.sub(r"\[\d+\]", "[…]", re.sub(r"'[^']{40,}'", "'…'", reason))
        reasons[kind] += 1
        first.setdefault(kind, place)
    return {
        "layout": list(met.formats),
        "columns_in_order": list(met.order),
        "unused_fields": list(met.unused),
        "labels": list(met.labels),
        "good_records": met.rows,
        "bad_records": len(met.places),
        "bad": [
            {"reason": kind, "records": count, "first": first[kind]} for kind, count in reasons.most_common(MAX_REASONS)
        ],
        "filtered": met.filtered,
        "equal_candidates_merged": met.merged,
        "both_positive_and_negative": {"count": met.conflicts, "first": list(met.conflict_places)},
    }


def _split(line: str) -> tuple[str, str]:
    """Splits `datasets.NAME: file:line: reason` into file:line and reason."""
    parts = line.split(": ", 2)
    return (parts[1], parts[2]) if len(parts) == 3 else ("", line)


def first_example(example: Example) -> Mapping[str, object]:
    """An example with truncated texts."""
    query = example.query if isinstance(example.query, str) else " · ".join(text for _, text in example.query)
    listed = [
        {
            "text": _cut(text),
            "relevance": value,
            "relevant": None if example.relevant is None else example.relevant[place],
        }
        for place, (text, value) in enumerate(zip(example.candidates, example.relevance, strict=True))
    ]
    return {
        "id": example.id,
        "source": example.source,
        "prompt": example.query_prompt,
        "query": _cut(query),
        "candidates": listed[:MAX_CANDIDATES],
        "of": len(listed),
    }


def _cut(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= MAX_SHOWN else flat[: MAX_SHOWN - 1] + "…"


def lines(name: str, read: Report, found: Report) -> list[str]:
    """Lines with remarks for the console, in addition to the table."""
    said = []
    if order := read["columns_in_order"]:
        said.append(f"columns in order: {', '.join(order)}")
    for item in read["bad"]:
        said.append(f"{item['records']:,} bad: {item['reason']} (first: {item['first']})")
    if unused := read["unused_fields"]:
        said.append(f"{len(unused)} fields are not used: {', '.join(unused)}")
    if read["filtered"]:
        said.append(f"{read['filtered']:,} records filtered out")
    if found["unknown_per_query"]:
        low, high = (read["labels"] or [None, None])[:2]
        labels = f" from {low:g} to {high:g}" if low is not None and high is not None else ""
        said.append(f"labels{labels}; relevant_from is not set: losses on positives and negatives will ask for it")
    if found["own_negatives_only"]:
        said.append(f"{found['own_negatives_only']:,} queries use their own negatives only (no_in_batch_neg)")
    for count, what in (
        (found["queries_in_several_examples"], "queries are in several examples"),
        (found["repeated_examples"], "examples repeat an earlier one"),
        (read["equal_candidates_merged"], "equal candidates of one query were merged"),
        (
            read["both_positive_and_negative"]["count"],
            "candidates were both positive and negative and are kept as positive",
        ),
        (
            found.get("positive_and_negative", {}).get("count", 0),
            "candidates are relevant in one example of their query only",
        ),
        (found.get("pairs_also_reversed", 0), "pairs are in the data in both directions"),
        (found["without_relevant"], "examples have no relevant candidate"),
    ):
        if count:
            said.append(f"{count:,} {what}")
    return [f"{name}: {line}" for line in said]
