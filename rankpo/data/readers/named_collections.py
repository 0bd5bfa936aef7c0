"""Collections by name: MTEB's form on the hub, NanoBEIR's thirteen sets, and the catalogue of ir_datasets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, runtime_checkable

import xxhash

from rankpo.data.readers.beir import Beir
from rankpo.data.readers.collection_parts import HubParts, Parts, Qrels
from rankpo.data.shape import Declares

NANO_HUB = "sentence-transformers/NanoBEIR-en"
NANO_SETS = (
    *("NanoArguAna", "NanoClimateFEVER", "NanoDBPedia", "NanoFEVER", "NanoFiQA2018", "NanoHotpotQA", "NanoMSMARCO"),
    *("NanoNFCorpus", "NanoNQ", "NanoQuoraRetrieval", "NanoSCIDOCS", "NanoSciFact", "NanoTouche2020"),
)


@runtime_checkable
class HoldsSets(Protocol):
    """An entry of datasets that stands for several, whose metrics get a mean."""

    def sets(self) -> Sequence[Declares]: ...


@dataclass(kw_only=True)
class HubCollection(Beir):
    """A collection in MTEB's form on the hub: configs for corpus, queries and judgements (`default` or `qrels`).

    name: the repository, such as mteb/scifact; path: the folder of a copy of it. alias: what its metrics stand under.
    config: what stands before the configs' names where a repository holds several collections, such as a language.
    collection: of the mean that its metrics join.
    """

    alias: str | None = None
    config: str | None = None
    revision: str | None = None
    collection: str | None = None
    skip_empty: bool = False

    def _open(self) -> Parts:
        place = self.path or self.name
        self.name = self.alias or self.name.rstrip("/").rpartition("/")[2]
        return HubParts(
            name=place,
            key=f"eval_datasets.{self.name}",
            split=self.split or "test",
            config=self.config,
            revision=self.revision,
        )

    def corpus(self) -> Iterator[tuple[str, str]]:
        return ((name, text) for name, text in super().corpus() if text or not self.skip_empty)


@dataclass(kw_only=True)
class NanoBeir(Declares):
    """The sets of NanoBEIR, each evaluated by itself, and their mean under `name`.

    path: a folder with copies: one of the hub's repository NanoBEIR-en, whose splits are the sets, or a folder of each
    set with a copy of its own repository. only: some of the sets. As sentence-transformers does, texts without content
    are left out and a hit with the query's own id counts as any other.
    """

    name: str = "nanobeir"
    path: str | None = None
    only: Sequence[str] | None = None
    ignore_identical_ids: bool = False
    gain: str = "linear"
    weight: float = 1.0

    def __post_init__(self) -> None:
        if strange := [name for name in self.only or () if name not in NANO_SETS]:
            raise ValueError(f"only={strange[0]} is no set of NanoBEIR; allowed: {', '.join(NANO_SETS)}")
        if self.path is not None and not Path(self.path).is_dir():
            raise FileNotFoundError(f"path: {self.path} is no folder")

    def sets(self) -> list[HubCollection]:
        return [self._set(name) for name in self.only or NANO_SETS]

    def _set(self, name: str) -> HubCollection:
        own = None if self.path is None else Path(self.path) / name
        apart = own is not None and own.is_dir()
        return HubCollection(
            name=NANO_HUB,
            path=str(own) if apart else self.path,
            alias=name,
            split="train" if apart else name,
            document_format="{text}",
            ignore_identical_ids=self.ignore_identical_ids,
            gain=self.gain,
            collection=self.name,
            skip_empty=True,
            missing_ids="drop",
        )


@dataclass(kw_only=True)
class IrDatasets(Beir):
    """A collection of the catalogue of ir_datasets, such as beir/scifact/test, which downloads it.

    text_fields: of documents, in their order; None: the text that ir_datasets itself takes. query_field: alike.
    """

    alias: str | None = None
    text_fields: Sequence[str] | None = None
    query_field: str | None = None

    def _open(self) -> Parts:
        if find_spec("ir_datasets") is None:
            raise ValueError("ir_datasets is not installed: pip install 'rankpo[ir_datasets]'")
        catalogue_name = self.name
        self.name = self.alias or self.name.replace("/", "_")
        return IrParts(catalogue_name, self.text_fields, self.query_field)


class IrParts:
    """The parts of a dataset of ir_datasets. Raises ValueError for a name that the catalogue does not have."""

    def __init__(self, name: str, text_fields: Sequence[str] | None, query_field: str | None) -> None:
        catalogue = import_module("ir_datasets")
        self.name, self.text_fields, self.query_field = name, text_fields, query_field
        try:
            self.dataset = catalogue.load(name)
        except KeyError as error:
            raise ValueError(f"name={name} is not in the catalogue of ir_datasets (https://ir-datasets.com)") from error
        for part in ("docs", "queries", "qrels"):
            if not getattr(self.dataset, f"has_{part}")():
                raise ValueError(f"name={name} of ir_datasets has no {part}; choose one with docs, queries and qrels")

    def records(self, part: str) -> Iterator[tuple[str, object]]:
        if part == "corpus":
            for item in self.dataset.docs_iter():
                yield self.name, {"_id": item.doc_id, "text": _text(item, self.text_fields)}
            return
        fields = None if self.query_field is None else [self.query_field]
        for item in self.dataset.queries_iter():
            yield self.name, {"_id": item.query_id, "text": _text(item, fields)}

    def qrels(self) -> Qrels:
        found: Qrels = {}
        for item in self.dataset.qrels_iter():
            found.setdefault(item.query_id, {})[item.doc_id] = int(item.relevance)
        return found

    def content(self) -> str:
        """By name, numbers of texts and judgements: the catalogue checks what it downloads itself."""
        qrels = sorted((query, sorted(judged.items())) for query, judged in self.qrels().items())
        counts = [self.dataset.docs_count(), self.dataset.queries_count()]
        parts = [self.name, list(self.text_fields or ()), self.query_field, counts, qrels]
        return xxhash.xxh3_128_hexdigest(json.dumps(parts).encode())


def _text(item: object, fields: Sequence[str] | None) -> str:
    """The text of a document or query. Raises ValueError for a field that it does not have."""
    if fields is None:
        return str(item.default_text())  # type: ignore[attr-defined]
    missing = [name for name in fields if not hasattr(item, name)]
    if missing:
        raise ValueError(f"{type(item).__name__} has no field {missing[0]}; its fields: {', '.join(item._fields)}")  # type: ignore[attr-defined]
    return " ".join(str(getattr(item, name)) for name in fields).strip()
