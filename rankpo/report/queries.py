"""Data of the page's query browser: the text of each query, the hits of every model, grades and judgements."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rankpo.data.readers.trec import read_run
from rankpo.evaluation.metrics import order
from rankpo.report import palette
from rankpo.report.contents import Pair, System
from rankpo.report.material import Library, Material

HITS = 10  # Shown hits of every model.
MAX_TEXT = 700  # characters of a document
MAX_BYTES = 800_000  # For all query data, so that the report of the demo is below 1.5 MB.

Ranks = Mapping[str, Mapping[str, int]]  # {query: {document: rank from 1}}


def browser(
    chosen: Sequence[System], pairs: Sequence[Pair], reference: System, library: Library
) -> list[dict[str, object]]:
    """Returns an entry for each data set with metrics by query; preference pairs only if there is no other."""
    names = list(dict.fromkeys(dataset for dataset, metric in pairs if metric != "accuracy"))
    names = names or list(dict.fromkeys(dataset for dataset, _ in pairs))
    judged = [dataset for dataset, metric in pairs if metric == "accuracy" and dataset not in names]
    sets = []
    for name in names:
        metrics = [metric for dataset, metric in pairs if dataset == name]
        evaluated = [system for system in chosen if all(system.has((name, metric)) for metric in metrics)]
        if evaluated:
            sets.append(_set(name, metrics, evaluated, reference, library, judged))
    return within([item for item in sets if item["queries"]], MAX_BYTES)


def _set(
    name: str,
    metrics: Sequence[str],
    chosen: Sequence[System],
    reference: System,
    library: Library,
    judged: Sequence[str],
) -> dict[str, object]:
    """Returns a data set: models, documents, and queries in descending order of the difference between models."""
    ranks = [_ranks(system, name) for system in chosen]
    shown = {document for of_model in ranks for hits in of_model.values() for document in _top(hits)}
    material = library.material(name, shown)
    values = [{metric: system.by_query((name, metric)) for metric in metrics} for system in chosen]
    numbers = {document: number for number, document in enumerate(sorted(shown))}
    choices = _choices(material, library, judged)
    base = next((n for n, system in enumerate(chosen) if system is reference), 0)
    queries = [
        _query(query, ranks, values, numbers, material, choices.get(material.queries.get(query, ""), ()))
        for query in _by_change(values, metrics[0], base)
    ]
    return {
        "name": name,
        "metrics": list(metrics),
        "base": base,
        "models": [_model(system) for system in chosen],
        "queries": queries,
        "total": len(queries),
        "documents": [[document, _cut(material.documents.get(document, ""))] for document in numbers],
    }


def _model(system: System) -> dict[str, object]:
    runs = system.group.runs
    note = f"the hits of {runs[0].name}, the first of {len(runs)} seeds" if len(runs) > 1 else ""
    return {"name": system.name, "colour": palette.colour(system.group.number), "note": note}


def _ranks(system: System, dataset: str) -> Ranks:
    """The ranking of the group's first run."""
    path = system.members[0][dataset].ranking
    if path is None:
        return {}
    run = read_run(path)
    return {query: {document: rank for rank, document in enumerate(order(hits), 1)} for query, hits in run.items()}


def _top(hits: Mapping[str, int]) -> list[str]:
    return [document for document, rank in hits.items() if rank <= HITS]


def _by_change(values: Sequence[Mapping[str, Mapping[str, float]]], metric: str, base: int) -> list[str]:
    """Returns the common queries of all models, by the largest difference of a model from the baseline."""
    shared = [query for query in values[0][metric] if all(query in of_model[metric] for of_model in values)]
    first = values[base][metric]
    return sorted(shared, key=lambda query: -max(abs(of_model[metric][query] - first[query]) for of_model in values))


def _choices(material: Material, library: Library, judged: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """{query text: [(preferred document, other document)]}: the judge's pairs whose texts are among the documents."""
    by_text = {text: document for document, text in material.documents.items()}
    found: dict[str, list[tuple[str, str]]] = {}
    for name in judged:
        for _, query, preferred, other in library.choices(name):
            if preferred in by_text and other in by_text:
                found.setdefault(query, []).append((by_text[preferred], by_text[other]))
    return found


def _query(
    query: str,
    ranks: Sequence[Ranks],
    values: Sequence[Mapping[str, Mapping[str, float]]],
    numbers: Mapping[str, int],
    material: Material,
    choices: Sequence[tuple[str, str]],
) -> dict[str, object]:
    """hits: [document, grade or None, rank in each model or 0]; judge: [preferred, other]; agrees: right and compared."""
    of_query = [of_model.get(query, {}) for of_model in ranks]
    documents = sorted({document for hits in of_query for document in _top(hits)}, key=numbers.__getitem__)
    grades = material.grades.get(query, {})
    known = bool(material.grades)
    return {
        "id": query,
        "text": material.queries.get(query, ""),
        "values": [[round(of_model[metric][query], 5) for metric in of_model] for of_model in values],
        "hits": [
            [
                numbers[document],
                grades.get(document, 0) if known else None,
                *(hits.get(document, 0) for hits in of_query),
            ]
            for document in documents
        ],
        "judge": [[numbers[preferred], numbers[other]] for preferred, other in choices],
        "agrees": [_agreement(hits, choices) for hits in of_query],
    }


def _agreement(hits: Mapping[str, int], choices: Sequence[tuple[str, str]]) -> list[int]:
    """[pairs in the order of the judge, pairs with at least one ranked document]."""
    last = len(hits) + 1
    places = [(hits.get(preferred, last), hits.get(other, last)) for preferred, other in choices]
    compared = [(first, second) for first, second in places if first != second]
    return [sum(first < second for first, second in compared), len(compared)]


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT].rstrip()} …"


def within(sets: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """Returns the sets with the most changed queries that fit into `limit` bytes of JSON."""
    for item in sets:
        share = limit // len(sets)
        while len(item["queries"]) > 1 and _size(item) > share:
            keep = max(1, min(len(item["queries"]) - 1, len(item["queries"]) * share // _size(item)))
            item["queries"] = item["queries"][:keep]
            _drop_unused(item)
    return sets


def _size(item: Mapping[str, object]) -> int:
    return len(json.dumps(item, ensure_ascii=False).encode())


def _drop_unused(item: dict[str, Any]) -> None:
    """Removes documents without a query in the set, and renumbers the others."""
    used = {hit[0] for query in item["queries"] for hit in query["hits"]}
    used |= {number for query in item["queries"] for pair in query["judge"] for number in pair}
    kept = sorted(used)
    new = {old: number for number, old in enumerate(kept)}
    item["documents"] = [item["documents"][old] for old in kept]
    for query in item["queries"]:
        query["hits"] = [[new[hit[0]], *hit[1:]] for hit in query["hits"]]
        query["judge"] = [[new[number] for number in pair] for pair in query["judge"]]
