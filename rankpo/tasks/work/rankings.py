"""Rankings of the queries of task=annotate, and the prompts that records state for queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from rankpo.judges import rankings
from rankpo.tasks.vector_models import vector_model

if TYPE_CHECKING:
    from rankpo.config.experiment import Experiment
    from rankpo.data.dataset import Dataset
    from rankpo.judges.rankings import Ranking
    from rankpo.tasks.annotate import Annotate
    from rankpo.tasks.session import Session
    from rankpo.types import Prompt


class Texts(NamedTuple):
    """Texts by id."""

    queries: Mapping[str, str]
    passages: Mapping[str, str]


def rankings_of(
    task: Annotate, experiment: Experiment, session: Session, texts: Texts, top_k: int
) -> dict[str, Ranking]:
    """The rankings of the queries, by the run of the task or by a search with the model."""
    say = session.logger.say
    if task.run is not None:
        return rankings.of_run(task.run, texts.queries, texts.passages, top_k, say)
    model = vector_model(experiment, session, "task=annotate without task.run")
    return rankings.searched(model, texts.queries, texts.passages, top_k, experiment.cache_dir, say)


def stated_prompts(datasets: Sequence[Dataset], queries: Mapping[str, Prompt]) -> dict[str, str]:
    """The query prompts that records state, by the text of the query; the first one of each query."""
    wanted = {query for query in queries.values() if isinstance(query, str)}
    found: dict[str, str] = {}
    for dataset in datasets:
        for example in dataset.examples():
            if example.query_prompt is not None and isinstance(example.query, str) and example.query in wanted:
                found.setdefault(example.query, example.query_prompt)
    return found
