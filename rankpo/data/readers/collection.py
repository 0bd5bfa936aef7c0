"""Collections of MS MARCO and TREC: a corpus and queries with qrels, runs or triples of ids."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import xxhash

from rankpo.data.grade_pairs import as_preferences, check_preferences
from rankpo.data.readers import files
from rankpo.data.readers.compression import opened
from rankpo.data.readers.fields import check_id
from rankpo.data.readers.texts import TextsById, read_texts
from rankpo.data.readers.trec import read_qrels, read_run
from rankpo.data.shape import Declares
from rankpo.types import Example

NAMES = {  # The names of the files of a folder.
    "corpus": r"(collection|corpus|docs|documents|msmarco-docs)\b.*",
    "queries": r"(.*queries|topics)\b.*",
    "qrels": r".*qrels\b.*",
    "triples": r".*triples\b.*",
    "run": r"(run|top\d+)\b.*|.*\.(run|trec)",
}
TOPIC = re.compile(rb"<top>(.*?)</top>", re.DOTALL | re.IGNORECASE)
NUMBER = re.compile(r"<num>\s*(?:Number:)?\s*([^\s<]+)", re.IGNORECASE)
TITLE = re.compile(r"<title>\s*(?:Topic:)?\s*([^<]+)", re.IGNORECASE)
VERSION = 1


@dataclass(kw_only=True)
class Collection(Declares):
    """A corpus and queries with qrels, a run or triples.

    path: a folder whose files are found by their names (collection.tsv, queries.train.tsv, qrels.train.tsv, …). split:
    the part of the names that selects files, such as train. corpus_file, queries_file, qrels_file, triples, run: files to
    use in place of those. Tables can have a header; topics can be in TREC's `<top>` format.

    As training data, each line of the triples is one example. Without triples, each query with qrels is one example, with
    the judged documents and the first `depth` documents of the run; unjudged documents are not relevant. Without a
    corpus, triples hold texts.

    preferences, relevant_from, gain, ignore_identical_ids: as for a BEIR folder.
    Raises FileNotFoundError at construction for missing files, ValueError if several files match a name.
    """

    name: str
    path: str | None = None
    split: str | None = None
    corpus_file: str | None = None
    queries_file: str | None = None
    qrels_file: str | None = None
    triples: str | None = None
    run: str | None = None
    depth: int = 100
    limit: int | None = None
    relevant_from: int = 1
    gain: str = "linear"
    ignore_identical_ids: bool = False
    preferences: str | None = None
    pairs_per_query: int = 6
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_preferences(self.preferences, self.pairs_per_query)
        if self.gain not in ("exp", "linear"):
            raise ValueError(f"gain must be one of exp, linear, got {self.gain!r}")
        for key in ("relevant_from", "depth"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be >= 1, got {getattr(self, key)}")
        given = {"corpus": self.corpus_file, "queries": self.queries_file, "qrels": self.qrels_file}
        given |= {"triples": self.triples, "run": self.run}
        self.parts: dict[str, Path] = {}
        for key, value in given.items():
            found = self._found(key) if value is None else Path(value).expanduser()
            if found is not None:
                if not found.exists():
                    raise FileNotFoundError(f"{key}: {found} does not exist")
                self.parts[key] = found
        if not {"qrels", "triples"} & set(self.parts):
            raise FileNotFoundError(
                f"path: {self.path} holds neither qrels nor triples; name a file by qrels_file or triples"
            )
        if "triples" not in self.parts and not {"corpus", "queries"} <= set(self.parts):
            raise FileNotFoundError("corpus_file and queries_file must be set to the texts of the judged ids")

    def _found(self, key: str) -> Path | None:
        """The file of the folder whose name matches, or None."""
        if self.path is None:
            return None
        folder = Path(self.path).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(f"path: {folder} is not a folder")
        fit = [file for file in sorted(folder.iterdir()) if file.is_file() and re.fullmatch(NAMES[key], file.name)]
        if key in ("qrels", "triples"):
            fit = [file for file in fit if not re.fullmatch(NAMES["queries"], file.name)]
        of_split = [file for file in fit if self.split is not None and self.split in re.split(r"[.\-_]", file.name)]
        fit = of_split or fit
        if len(fit) > 1:
            names = ", ".join(file.name for file in fit)
            raise ValueError(f"{key}: {len(fit)} files of {folder} match ({names}); set split, or name one of them")
        return fit[0] if fit else None

    @property
    def files(self) -> Sequence[Path]:
        """The input files, which no output may overwrite."""
        return list(self.parts.values())

    @property
    def judgements(self) -> Collection | None:
        return None if self.preferences else self

    def fingerprint(self) -> str:
        settings: list[object] = [VERSION, self.depth, self.limit, self.relevant_from, sorted(self.parts)]
        settings += [self.preferences, self.pairs_per_query] if self.preferences else []
        return xxhash.xxh3_128_hexdigest((files.content_fingerprint(self.files) + json.dumps(settings)).encode())

    def corpus(self) -> Iterator[tuple[str, str]]:
        self._has("corpus")
        yield from self._with_ids("corpus", "passage")

    def _has(self, part: str) -> None:
        """Raises ValueError if the collection has no such part, which triples of texts do not need."""
        if part not in self.parts:
            raise ValueError(f"datasets.{self.name} has no {part}; set datasets.{self.name}.{part}_file")

    def queries(self) -> Iterator[tuple[str, str]]:
        self._has("queries")
        path = self.parts["queries"]
        with opened(path) as file:
            start = file.read(4096)
        if b"<top>" in start.lower():
            yield from self._topics(path)
        else:
            yield from self._with_ids("queries", "query")

    def _with_ids(self, part: str, role: str) -> Iterator[tuple[str, str]]:
        for place, identity, text in read_texts(self.parts[part], role):
            if identity is None:
                raise ValueError(f"datasets.{self.name}: {place}: no id")
            yield identity, text

    def _topics(self, path: Path) -> Iterator[tuple[str, str]]:
        """Yields the number and the title of each TREC topic."""
        with opened(path) as file:
            for block in TOPIC.findall(file.read()):
                text = block.decode("utf-8", errors="replace")
                number, title = NUMBER.search(text), TITLE.search(text)
                if number is None or title is None:
                    raise ValueError(f"datasets.{self.name}: {path.name}: a topic without <num> and <title>")
                yield check_id(number[1]), " ".join(title[1].split())

    def qrels(self) -> dict[str, dict[str, int]]:
        """The judgements of the queries in the collection. Raises ValueError if there are no qrels."""
        if "qrels" not in self.parts:
            raise ValueError(f"datasets.{self.name}: there are no judgements; set datasets.{self.name}.qrels_file")
        known = dict(self.queries())
        return {query: judged for query, judged in read_qrels(self.parts["qrels"]).items() if query in known}

    @cached_property
    def _texts(self) -> TextsById:
        return TextsById([self.parts["corpus"]])

    def examples(self) -> Iterator[Example]:
        """Yields the examples. Raises ValueError, with the line or query, for an id without a text."""
        found = self._of_triples() if "triples" in self.parts else self._of_judgements()
        yield from as_preferences(islice(found, self.limit), self.preferences, self.pairs_per_query, self.name)

    def _of_triples(self) -> Iterator[Example]:
        queries = dict(self.queries()) if "queries" in self.parts else {}
        for place, row in files.rows(self.parts["triples"]):
            if isinstance(row, files.NotARecord) or len(row) < 3:
                what = row if isinstance(row, files.NotARecord) else f"{len(row)} columns; a triple has 3 or more"
                raise ValueError(f"datasets.{self.name}: {place}: {what}")
            query, *documents = row
            if "corpus" in self.parts:
                query = self._known(queries.get(query), query, place, "queries")
                documents = [self._known(self._texts.get(name), name, place, "corpus") for name in documents]
            relevant = (True, *[False] * (len(documents) - 1))
            relevance = tuple(float(flag) for flag in relevant)
            yield Example(query, tuple(documents), relevance, f"{self.name}:{place}", source=place, relevant=relevant)

    def _of_judgements(self) -> Iterator[Example]:
        qrels, run = self.qrels(), read_run(self.parts["run"]) if "run" in self.parts else {}
        for query, text in self.queries():
            judged = qrels.get(query)
            if not judged:
                continue
            grades = {**judged, **{name: judged.get(name, 0) for name in self._first(run.get(query, {}))}}
            texts = tuple(self._known(self._texts.get(name), name, f"query {query}", "corpus") for name in grades)
            yield Example(
                text,
                texts,
                tuple(float(max(0, grade)) for grade in grades.values()),
                f"{self.name}:{query}",
                source=query,
                relevant=tuple(grade >= self.relevant_from for grade in grades.values()),
            )

    def _first(self, scores: Mapping[str, float]) -> list[str]:
        """The first documents of a run, best first; ties are broken by id."""
        return sorted(scores, key=lambda name: (-scores[name], name))[: self.depth]

    def _known(self, text: str | None, name: str, place: str, part: str) -> str:
        if text is None:
            raise ValueError(f"datasets.{self.name}: {place}: {self.parts[part].name} has no text for the id {name!r}")
        return text
