"""Forms of an index: its vectors in each dtype of `task.forms`, with their size, quality and speed in one table."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rankpo.errors import ConfigError
from rankpo.retrieval.dense import DenseSearch, Hits
from rankpo.retrieval.embeddings import Embeddings, quantised
from rankpo.retrieval.quantisation import FLOATS
from rankpo.retrieval.quantised import QuantisedSearch
from rankpo.retrieval.stored import Stored
from rankpo.runs import processes
from rankpo.tasks.vector_models import check_dtype
from rankpo.tasks.work.search_results import Asked, Run, measured

if TYPE_CHECKING:
    from rankpo.data.dataset import Dataset
    from rankpo.models.vectors import GivesVectors
    from rankpo.tasks.search import Search
    from rankpo.tasks.session import Session

SECONDS, MOST_TURNS = 0.5, 10  # Of the measurement of speed.

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Forms of one index, searched with the same queries. datasets: with judgements, or none."""

    task: Search
    asked: Asked
    datasets: Sequence[Dataset]
    session: Session

    def rows(self, index: Stored, queries: Stored) -> list[dict[str, object]]:
        """The rows of the table, that of the index first. `lost` is the metric of the index minus that of the form."""
        assert isinstance(index, Embeddings) and isinstance(queries, Embeddings)
        before, best = self._searched(index, queries)
        measures = [name for name in before if name.rpartition("/")[2] in self.task.metrics]
        rows = [before]
        for form in dict.fromkeys(self.task.forms):
            if form == index.encoding.dtype:
                continue
            row, found = self._searched(self._in_form(index, form), queries)
            lost = {f"{name} lost": _minus(before[name], row[name]) for name in measures}
            row = {**row, **lost, "same hits": _overlap(best, found)}
            rows.append(row)
        return rows

    def _in_form(self, index: Embeddings, form: str) -> Embeddings:
        folder = Path(self.task.output) / "forms" / form
        if processes.rank() == 0:
            quantised(index, folder, form)
        processes.barrier()
        self.session.logger.say(f"{folder} written, an index for task.index")
        return Embeddings(folder)

    def _searched(self, index: Embeddings, queries: Embeddings) -> tuple[dict[str, object], Run]:
        search = dense_search(self.task, index, self.asked.depth, self.session)
        hits, seconds = _timed(lambda: search.hits(queries, index))
        run = self.asked.run_of(hits)
        values = measured(self.datasets, run, self.task.metrics, self.session.logger.say)
        row = {"dtype": index.encoding.dtype, "MB": index.bytes / 1e6, **values}
        return {**row, "queries/s": len(queries) / seconds}, run


def dense_search(task: Search, index: Embeddings, depth: int, session: Session) -> DenseSearch | QuantisedSearch:
    """The exact search of an index of vectors, or the search of an index of codes."""
    if index.quantiser is None:
        return DenseSearch(top_k=depth, device=session.device, say=session.logger.say)
    return QuantisedSearch(
        top_k=depth, rescore_multiplier=task.rescore_multiplier, device=session.device, say=session.logger.say
    )


def check_forms(task: Search, index: Stored, model: GivesVectors, say: Say) -> None:
    """Raises ConfigError if the index or the model cannot be compared in the forms of the task."""
    for form in task.forms:
        check_dtype(f"task.forms={form}", form, model, say)
    if task.forms and index.encoding.dtype not in FLOATS:
        raise ConfigError(
            [
                f"task.forms is made of vectors, and task.index={task.index} holds codes (dtype={index.encoding.dtype}); "
                "encode the corpus with task.dtype=float32"
            ]
        )


def _timed(search: Callable[[], Hits]) -> tuple[Hits, float]:
    """The hits, and the seconds of the fastest of several searches."""
    started, seconds = time.monotonic(), np.inf
    for _ in range(MOST_TURNS):
        turn = time.monotonic()
        hits = search()
        seconds = min(seconds, time.monotonic() - turn)
        if time.monotonic() - started > SECONDS:
            break
    return hits, float(seconds)


def _minus(before: object, after: object) -> float:
    assert isinstance(before, float) and isinstance(after, float)
    return before - after


def _overlap(best: Run, found: Run) -> float:
    """The mean share of the documents in `best` that `found` has too."""
    shares = [len(own.keys() & found[query].keys()) / len(own) for query, own in best.items() if own]
    return float(np.mean(shares)) if shares else 1.0
