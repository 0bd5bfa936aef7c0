"""First stage of task=search in two stages: candidates from a TREC run, or from BM25 over the texts of the corpus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rankpo.data.readers.trec import order, read_run
from rankpo.errors import ConfigError
from rankpo.models.load import ignore
from rankpo.retrieval.bm25 import Bm25Index
from rankpo.retrieval.corpus import open_source
from rankpo.tasks.search import BM25

if TYPE_CHECKING:
    from rankpo.config.experiment import Experiment
    from rankpo.tasks.search import Search


def candidates_of(
    task: Search, experiment: Experiment, queries: Mapping[str, str], documents: Sequence[str]
) -> list[np.ndarray] | None:
    """For every query, the row numbers of its candidates in the index, best first. documents: the ids of the index.
    None if the search has no first stage, or if its first stage uses a part of the vectors.

    Raises ConfigError for a run or a corpus that does not match the index.
    """
    if not task.first_stage_of_texts:
        return None
    places = {name: number for number, name in enumerate(documents)}
    if task.candidates == BM25:
        return _by_words(task, experiment, queries, documents)
    return _of_run(task, queries, places)


def _of_run(task: Search, queries: Mapping[str, str], places: Mapping[str, int]) -> list[np.ndarray]:
    run = read_run(str(task.candidates))
    found = []
    for query in queries:
        listed = [places[name] for name in order(run.get(query, {})) if name in places]
        found.append(np.array(listed[: task.candidate_depth], dtype=np.int64))
    if not any(map(len, found)):
        raise ConfigError(
            [f"task.candidates={task.candidates} shares no query and document with the queries and the index"]
        )
    return found


def _by_words(
    task: Search, experiment: Experiment, queries: Mapping[str, str], documents: Sequence[str]
) -> list[np.ndarray]:
    texts = dict(open_source(task.corpus, "passage", experiment.datasets).texts())
    if list(texts) != list(documents):
        raise ConfigError(
            [
                f"task.corpus={task.corpus} is not the corpus of {task.index}: its {len(texts)} ids differ from the "
                f"{len(documents)} ids of the index; set task.corpus to the source that task=encode was given"
            ]
        )
    tokenize = None
    if task.bm25.tokenizer == "model":
        tokenize = experiment.model.open_inputs(ignore, experiment.explicit).tokenizer.tokenize
    index = Bm25Index(list(texts.values()), task.bm25, tokenize)
    found = []
    for query in queries.values():
        scores = index.scores(query)
        best = np.argsort(-scores, kind="stable")[: task.candidate_depth]
        found.append(best[scores[best] > 0].astype(np.int64))
    return found
