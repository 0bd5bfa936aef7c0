"""Results of task=search: the run of its hits, its files, and its metrics where the datasets have judgements."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rankpo.data.readers.trec import write_run
from rankpo.data.shape import declared
from rankpo.errors import ConfigError
from rankpo.evaluation.rules import Rules
from rankpo.retrieval.corpus import TextSource
from rankpo.storage.atomic import replacing

if TYPE_CHECKING:
    from rankpo.data.dataset import Dataset
    from rankpo.retrieval.dense import Hits

Run = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The queries of a search by their ids, and the ids of the documents by number.

    top_k: documents of each query. own_id: whether a hit with the id of its query is removed. source: the texts of the
    documents, if the hits show them.
    """

    queries: Mapping[str, str]
    documents: Sequence[str]
    top_k: int
    own_id: bool
    source: TextSource | None = None

    @property
    def depth(self) -> int:
        """The hits to ask for, so that `top_k` are left."""
        return self.top_k + self.own_id

    def run_of(self, hits: Hits) -> dict[str, dict[str, float]]:
        """The scores of each query's documents by their ids, best first."""
        run: dict[str, dict[str, float]] = {}
        for query, numbers, scores in zip(self.queries, hits.numbers, hits.scores, strict=True):
            found = [
                (self.documents[number], float(f"{score:.9g}"))
                for number, score in zip(numbers.tolist(), scores.tolist(), strict=True)
                if number >= 0 and not (self.own_id and self.documents[number] == query)
            ]
            run[query] = dict(found[: self.top_k])
        return run


@dataclass(frozen=True)
class Shown:
    """Texts and titles of documents by their ids, for hits.jsonl."""

    texts: Mapping[str, str]
    titles: Mapping[str, str]

    def of(self, document: str) -> dict[str, str]:
        title = {"title": self.titles[document]} if document in self.titles else {}
        return {**title, "text": self.texts[document]}


def check_texts(source: TextSource, documents: Sequence[str], given: str) -> None:
    """Raises ConfigError, before the search, if documents of the index have no text. given: key and value of the source."""
    without = set(documents) - {name for name, _ in source.texts()}
    if without:
        raise ConfigError(
            [
                f"{given} has no text for {len(without)} of {len(documents)} documents of the index, such as {min(without)!r}"
            ]
        )


def shown(source: TextSource, run: Run) -> Shown:
    """The texts and titles of the documents of a run."""
    wanted = {name for found in run.values() for name in found}
    titles = {name: title for name, title in source.titles().items() if name in wanted}
    return Shown({name: text for name, text in source.texts() if name in wanted}, titles)


def write_hits(folder: Path, asked: Asked, run: Run) -> None:
    """Writes run.trec and hits.jsonl, with the texts of the hits if `asked` has their source."""
    texts = None if asked.source is None else shown(asked.source, run)
    with replacing(folder / "hits.jsonl") as temporary, temporary.open("w", encoding="utf-8") as file:
        for query, found in run.items():
            listed = [
                {"rank": rank, "id": name, "score": score, **(texts.of(name) if texts is not None else {})}
                for rank, (name, score) in enumerate(found.items(), 1)
            ]
            line = {"query_id": query, "query": asked.queries[query], "hits": listed}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    write_run(folder / "run.trec", run)


def measured(
    datasets: Sequence[Dataset], run: Run, metrics: Sequence[str], say: Callable[[str], None]
) -> dict[str, float]:
    """The metrics NAME/METRIC of a run on each dataset with judgements. say: reports unusable judgements."""
    values: dict[str, float] = {}
    for collection in (declared(dataset).judgements for dataset in datasets):
        if collection is None or not metrics:
            continue
        try:
            qrels = collection.qrels()
        except ValueError as error:
            say(f"no metrics: {error}")
            continue
        own = {query: run[query] for query in qrels if query in run}
        rules = Rules.of(collection)
        if (line := rules.left_out(qrels)) is not None:
            say(f"{collection.name}: {line}")
        found = rules.measure(own, qrels, metrics).metrics
        values |= {f"{collection.name}/{name}": value for name, value in found.items() if name in metrics}
    return values
