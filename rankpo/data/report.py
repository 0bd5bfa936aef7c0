"""Report on the training data: counts, lengths, labels, contradictions, and overlap with evaluation data.

All values are computed from the arrays of the text store. Texts are equal if their tokens are equal; an uncased
tokenizer therefore ignores case.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from rankpo.data.relevance import IRRELEVANT, RELEVANT
from rankpo.data.table import ExampleTable
from rankpo.storage.atomic import replace_text

QUANTILES = {"p5": 0.05, "p50": 0.5, "p95": 0.95, "max": 1.0}
MAX_VALUES = 10  # The largest number of distinct labels that are counted separately.
BINS = 5
MAX_NAMED = 3

Kept = Callable[[np.ndarray, str], np.ndarray]
Report = dict[str, Any]


def data_report(
    table: ExampleTable,
    names: Sequence[str],
    kept: Kept | None = None,
    evaluations: Mapping[str, tuple[ExampleTable, np.ndarray]] | None = None,
) -> Report:
    """Returns {"datasets": {name: …}, "overlap": {name: …}} for JSON.

    kept: a function from text lengths and a role to the lengths after truncation, as `EmbeddingInputs.kept`; None if the
    model truncates in another way. evaluations: by name, a table and its (query, candidate) pairs as rows, [P, 2].
    """
    datasets = {name: dataset_report(table, number, kept) for number, name in enumerate(names)}
    for name, met in table.meta["reports"].items():
        if name in datasets:
            datasets[name]["read"] = met
    return {"datasets": datasets, "overlap": _overlaps(table, evaluations or {})}


def dataset_report(table: ExampleTable, number: int, kept: Kept | None = None) -> Report:
    """The part of one dataset; `number` as in `table.dataset`.

    A million records have some million candidates, so arrays of candidates are kept few and small.
    """
    mine = np.asarray(table.dataset) == number  # [examples]
    counts = np.diff(table.offsets)
    slots = np.repeat(mine, counts)  # [candidates of all datasets]
    queries, candidates = np.asarray(table.query)[mine], np.asarray(table.candidates)[slots]
    times = np.bincount(queries, minlength=table.num_rows)
    asked, shown = times > 0, _occurring(candidates, table.num_rows)
    report: Report = {
        "examples": len(queries),
        "candidates": len(candidates),
        "distinct_queries": int(asked.sum()),
        "distinct_candidates": int(shown.sum()),
        "distinct_texts": int((asked | shown).sum()),
        "queries_in_several_examples": int((times > 1).sum()),
        "candidates_per_example": quantiles(counts[mine]),
        "tokens": {
            "query": _lengths(np.asarray(table.lengths)[queries], "query", kept),
            "candidate": _lengths(np.asarray(table.lengths)[candidates], "candidate", kept),
        },
        "labels": histogram(np.asarray(table.relevance)[slots]),
        "confidence": histogram(np.asarray(table.confidence)[mine]),
        "without_relevant": int((mine & ~_has_relevant(table)).sum()),
    }
    if len(queries) and (counts[mine] == 2).all():
        report["pairs_also_reversed"] = _reversed_pairs(table, np.flatnonzero(mine)[times[queries] > 1])
    else:
        report["positive_and_negative"] = _contradictions(table, np.flatnonzero(slots))
    return report


def _occurring(rows: np.ndarray, num_rows: int) -> np.ndarray:
    """[num_rows] whether each row occurs among `rows`."""
    found = np.zeros(num_rows, dtype=bool)
    found[rows] = True
    return found


def _has_relevant(table: ExampleTable) -> np.ndarray:
    """[examples] whether some candidate of the example is not stated to be irrelevant."""
    before = np.zeros(len(table.candidates) + 1, dtype=np.int32)
    np.cumsum(np.asarray(table.stated) != IRRELEVANT, out=before[1:])
    return before[table.offsets[1:]] > before[table.offsets[:-1]]


def quantiles(values: np.ndarray, counts: np.ndarray | None = None) -> dict[str, int]:
    """Quantiles of integers, each of them an element of `values`; {} for an empty array. counts: of each value."""
    if not len(values):
        return {}
    found = np.quantile(values, list(QUANTILES.values()), method="inverted_cdf", weights=counts)
    return {name: int(value) for name, value in zip(QUANTILES, found, strict=True)}


def histogram(values: np.ndarray) -> dict[str, int]:
    """Counts by value, or by five bins of equal width if there are more than ten values. NaN is ignored."""
    values = values[~np.isnan(values)]
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) <= MAX_VALUES:
        return {f"{value:g}": int(count) for value, count in zip(distinct, counts, strict=True)}
    counts, edges = np.histogram(values, bins=BINS)
    return {f"{edges[i]:.4g} to {edges[i + 1]:.4g}": int(count) for i, count in enumerate(counts)}


def _lengths(lengths: np.ndarray, role: str, kept: Kept | None) -> Report:
    """Quantiles of lengths in tokens, and the share of truncated texts, from the counts of each length."""
    counts = np.bincount(lengths)
    values = np.flatnonzero(counts)
    counts = counts[values]
    report: Report = quantiles(values, counts)
    if kept is not None and len(values):
        # A text was truncated if one token less would give the same length.
        report["truncated"] = float(np.average(kept(values, role) == kept(values - 1, role), weights=counts))
    return report


def _contradictions(table: ExampleTable, slots: np.ndarray) -> Report:
    """Candidates that are relevant in one example of a query and not in another."""
    counts = np.diff(table.offsets)
    pairs = np.repeat(np.asarray(table.query, dtype=np.int64), counts)[slots] * table.num_rows
    pairs += np.asarray(table.candidates)[slots]
    stated = np.asarray(table.stated)[slots]
    both = np.intersect1d(pairs[stated == RELEVANT], pairs[stated == IRRELEVANT])
    places = slots[np.isin(pairs, both[:MAX_NAMED])] if len(both) else slots[:0]
    owners = np.searchsorted(table.offsets, places, side="right") - 1
    named = list(dict.fromkeys(table.id(int(owner)) for owner in owners))
    return {"count": len(both), "first_examples": named}


def _reversed_pairs(table: ExampleTable, examples: np.ndarray) -> int:
    """The number of pairs of a query that the data holds in both directions, which is label noise.

    examples: those whose query occurs in several, since the others have no such pair.
    """
    first = np.asarray(table.offsets)[examples]
    above, below = np.asarray(table.candidates)[first], np.asarray(table.candidates)[first + 1]
    relevance, other = np.asarray(table.relevance)[first], np.asarray(table.relevance)[first + 1]
    decided = relevance != other
    forwards = ((above < below) == (relevance > other))[decided]  # the smaller row is the better one
    queries = np.asarray(table.query)[examples][decided]
    pairs = (np.minimum(above, below).astype(np.int64) * table.num_rows + np.maximum(above, below))[decided]
    order = np.lexsort((forwards, pairs, queries))
    same = (np.diff(queries[order]) == 0) & (np.diff(pairs[order]) == 0)
    return int((same & (np.diff(forwards[order].astype(np.int8)) != 0)).sum())


def all_pairs(table: ExampleTable) -> np.ndarray:
    """The rows of each candidate's query and of the candidate, [slots, 2]."""
    queries = np.repeat(np.asarray(table.query), np.diff(table.offsets))
    return np.column_stack([queries, np.asarray(table.candidates)])


def _overlaps(table: ExampleTable, evaluations: Mapping[str, tuple[ExampleTable, np.ndarray]]) -> Report:
    """For each evaluation, the queries, (query, candidate) pairs and candidates shared with the training data."""
    if not evaluations:
        return {}
    ours = _digests(table, np.arange(table.num_rows))
    training = {
        "queries": np.unique(ours[np.asarray(table.query)]),
        "pairs": np.unique(_joined(ours, all_pairs(table))),
        "candidates": np.unique(ours[np.asarray(table.candidates)]),
    }
    report = {}
    for name, (other, pairs) in evaluations.items():
        theirs = _digests(other, np.arange(other.num_rows))
        found = {
            "queries": np.unique(theirs[pairs[:, 0]]),
            "pairs": np.unique(_joined(theirs, pairs)),
            "candidates": np.unique(theirs[np.asarray(other.candidates)]),
        }
        report[name] = {
            what: {"shared": int(np.isin(values, training[what]).sum()), "of": len(values)}
            for what, values in found.items()
        }
    return report


def _digests(table: ExampleTable, rows: np.ndarray) -> np.ndarray:
    """Digests of the rows' tokens, [len(rows)] uint64, equal in all tables with the same tokenizer and prompts."""
    values = (xxhash.xxh3_64_intdigest(np.ascontiguousarray(table.tokens(int(row))).data) for row in rows)
    return np.fromiter(values, dtype=np.uint64, count=len(rows))


def _joined(digests: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Digests of (query, candidate) pairs, [P] uint64. One side is multiplied by an odd number, since order matters."""
    return digests[pairs[:, 0]] * np.uint64(0x9E3779B97F4A7C15) + digests[pairs[:, 1]]


def lines(report: Report) -> list[str]:
    """The report for the console, with one line for each dataset and each evaluation."""
    said = []
    for name, part in report["datasets"].items():
        said.append(
            f"data {name}: {part['examples']:,} examples, {part['candidates']:,} candidates, "
            f"{part['distinct_texts']:,} distinct texts · {_tokens(part, 'query')} · {_tokens(part, 'candidate')}"
        )
        said.extend(f"data {name}: {note}" for note in _notes(part))
    for name, shared in report["overlap"].items():
        counts = ", ".join(f"{item['shared']:,} of {item['of']:,} {what}" for what, item in shared.items())
        warning = "warning: " if shared["queries"]["shared"] or shared["pairs"]["shared"] else ""
        said.append(f"{warning}{name} shares with the training data {counts}")
    return said


def _tokens(part: Report, role: str) -> str:
    lengths = part["tokens"][role]
    if not lengths:
        return f"no {role}"
    cut = lengths.get("truncated", 0)
    ending = f", {cut:.1%} cut" if cut else ""
    return f"{role} tokens p50 {lengths['p50']}, p95 {lengths['p95']}, max {lengths['max']}{ending}"


def _notes(part: Report) -> list[str]:
    """Lines about properties that are reported only if they occur."""
    notes = []
    met = part.get("read")
    if met and (bad := met["places"]):
        notes.append(f"{len(bad)} bad records are excluded, the first: {bad[0]}")
    if met and met["filtered"]:
        notes.append(f"{met['filtered']:,} records filtered out")
    if met and (order := met["order"]):
        notes.append(f"columns are read in their order: {', '.join(order)}; other roles by the keys of the field map")
    if met and (unused := met["unused"]):
        notes.append(f"{len(unused)} fields are not used: {', '.join(unused)}")
    both = part.get("positive_and_negative", {}).get("count", 0)
    if both:
        where = ", ".join(part["positive_and_negative"]["first_examples"])
        notes.append(f"{both:,} candidates are relevant in one example of their query and not in another ({where})")
    if part.get("pairs_also_reversed"):
        notes.append(f"{part['pairs_also_reversed']:,} pairs are in the data in both directions")
    return notes


def write_report(path: Path, report: Report) -> None:
    """Writes JSON atomically."""
    replace_text(path, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
