"""JSON lines of sparse vectors for search engines: Elasticsearch, OpenSearch, Vespa and Qdrant."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from rankpo.retrieval.embeddings import Embeddings
from rankpo.storage.atomic import replacing

Terms = Mapping[int, float]  # Entry and weight of one text.
FIELD = "sparse_vector"


def _bulk(number: int, identity: str, terms: Terms, tokens: Sequence[str]) -> Iterator[object]:
    """Two lines of the _bulk API; the field is of type sparse_vector or rank_features."""
    yield {"index": {"_id": identity}}
    yield {FIELD: _named(terms, tokens)}


def _vespa(number: int, identity: str, terms: Terms, tokens: Sequence[str]) -> Iterator[object]:
    """A put of `vespa feed`; the field is a tensor<float>(token{})."""
    fields = {"id": identity, FIELD: {"cells": _named(terms, tokens)}}
    yield {"put": f"id:rankpo:passage::{quote(identity, safe='')}", "fields": fields}


def _qdrant(number: int, identity: str, terms: Terms, tokens: Sequence[str]) -> Iterator[object]:
    """A point with the number of the text; its payload contains the id."""
    vector = {"indices": list(terms), "values": list(terms.values())}
    yield {"id": number, "vector": {FIELD: vector}, "payload": {"id": identity}}


Writer = Callable[[int, str, Terms, Sequence[str]], Iterator[object]]
ENGINES: Mapping[str, Writer] = {"elasticsearch": _bulk, "opensearch": _bulk, "vespa": _vespa, "qdrant": _qdrant}


def _named(terms: Terms, tokens: Sequence[str]) -> dict[str, float]:
    return {tokens[entry]: weight for entry, weight in terms.items()}


def write_engine_file(embeddings: Embeddings, engine: str, tokens: Sequence[str], path: Path) -> None:
    """Writes the texts of a folder of sparse vectors. tokens: the text of each vocabulary entry."""
    ids = iter(embeddings.ids())
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        number = 0
        for block in embeddings.sparse_blocks():
            for part in block.rows.split(block.counts.tolist()):
                terms = {int(entry): float(f"{weight:.7g}") for entry, weight in part.tolist()}
                for line in ENGINES[engine](number, next(ids), terms, tokens):
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
                number += 1
