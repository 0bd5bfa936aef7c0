"""The work of task=annotate with mode=lists: short lists of rankings, each put in order by a judge."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rankpo.data.random_keys import random_keys
from rankpo.data.random_keys import text_key as random_text_key
from rankpo.data.text.conversations import plain_text
from rankpo.errors import ConfigError
from rankpo.judges.estimate import estimate, say_cut
from rankpo.judges.forms import ListAnnotation
from rankpo.judges.grades import EqualGrades, equal_grades
from rankpo.judges.list_annotation import ChosenLists, ListAnnotator, ListOutcome, asked_list
from rankpo.judges.lists import Shortlist, draw_lists
from rankpo.judges.pairs import in_rounds
from rankpo.judges.suspicious import signs
from rankpo.retrieval.corpus import open_source, text_key
from rankpo.tasks.work.judging import Judging, Plan
from rankpo.tasks.work.rankings import Texts, rankings_of, stated_prompts

if TYPE_CHECKING:
    from rankpo.config.experiment import Experiment
    from rankpo.judges.base import Judge
    from rankpo.runs.logger import MetricsLogger
    from rankpo.tasks.annotate import Annotate
    from rankpo.tasks.session import Session


@dataclass(frozen=True, kw_only=True)
class Lists:
    """Lists to judge.

    queries, texts: by id. num_dropped: the number of passages that suspicious=drop excluded. equal_grades: of the pairs
    of the lists whose grades are known. prompts: by the text of a query, the prompt that its record states.
    """

    drawn: Sequence[Shortlist]
    num_dropped: int
    queries: Mapping[str, str]
    texts: Mapping[str, str]
    equal_grades: EqualGrades
    prompts: Mapping[str, str]


def judge_lists(task: Annotate, experiment: Experiment, judge: Judge, session: Session) -> Mapping[str, object]:
    """Returns the report. Raises Unfinished if a budget is spent or the server fails before all lists are judged."""
    lists, logger = _lists(task, experiment, session), session.logger
    if (key := judge.unmarked(lists=True)) is not None:
        logger.say(f"{key} has no {{mark}} around the texts, so a passage can imitate the end of its text")
    shown = {identity for drawn in lists.drawn for identity in drawn.ids}
    say_cut(
        lambda texts: judge.count_cut(*texts, lists=True),
        {plain_text(lists.queries[drawn.query_id]) for drawn in lists.drawn},
        {lists.texts[identity] for identity in shown},
        logger.say,
    )
    if task.dry_run:
        requests = [
            judge.request_list(lists.queries[drawn.query_id], [lists.texts[identity] for identity in drawn.ids])
            for drawn in lists.drawn
        ]
        row = estimate(judge, "lists", requests, 2 if task.order == "both" else 1, logger.say)
        logger.table([row], "\ndry run: the judge was not called")
        return row
    with session.claimed(Path(task.output)):
        return _judged(task, experiment, Judging(task, experiment.cache_dir, judge), lists, logger)


def _lists(task: Annotate, experiment: Experiment, session: Session) -> Lists:
    """The lists of the rankings of task.queries. Raises ConfigError if none can be drawn."""
    queries = dict(open_source(task.queries, "query", experiment.datasets).texts())
    texts = dict(open_source(task.corpus, "passage", experiment.datasets).texts())
    found = rankings_of(task, experiment, session, Texts(queries, texts), task.lists.top_k)
    trusted = texts
    if task.suspicious == "drop":
        ranked = {identity for ids, _ in found.values() for identity in ids}
        trusted = {identity: texts[identity] for identity in ranked if not signs(texts[identity])}
    drawn = in_rounds(
        [draw_lists(task.lists, query, ids, trusted, experiment.seed, text_key) for query, (ids, _) in found.items()]
    )[: task.limit]
    if not drawn:
        raise ConfigError(
            ["no list can be drawn, because no query has two different texts; check task.lists and task.run"]
        )
    grades = equal_grades([pair for short in drawn for pair in short.pairs()], queries, texts, experiment.datasets)
    if grades.known:
        session.logger.say(
            f"{grades.share:.0%} of the {grades.known} pairs of the lists whose grades are known have passages of equal grade"
        )
    return Lists(
        drawn=drawn,
        num_dropped=0
        if trusted is texts
        else len({name for ids, _ in found.values() for name in ids} - trusted.keys()),
        queries=queries,
        texts=texts,
        equal_grades=grades,
        prompts=stated_prompts(experiment.datasets, queries),
    )


def _judged(
    task: Annotate, experiment: Experiment, files: Judging[ListAnnotation], lists: Lists, logger: MetricsLogger
) -> Mapping[str, object]:
    """Judges the lists that have no answer yet and writes the results. Returns the report."""
    annotator = ListAnnotator(
        judge=files.judge,
        answers=files.answers,
        costs=files.costs,
        texts=lists.texts,
        queries=lists.queries,
        order=task.order,
        max_reasks=task.max_reasks,
        max_calls=task.max_calls,
        max_cost=task.max_cost,
    )
    try:
        plan = Plan(
            items=[(drawn, task.order == "random" and _is_reversed(experiment.seed, drawn)) for drawn in lists.drawn],
            names=[asked_list(files.judge, drawn, lists.queries, lists.texts, task.order) for drawn in lists.drawn],
            keys=[_key_of(drawn) for drawn in lists.drawn],
            work=lambda item: annotator.annotate(*item),
        )
        judged = files.ask_all(annotator, plan, logger)
        outcome = ListOutcome(
            records=files.known(plan.names),
            num_drawn=len(lists.drawn),
            num_dropped=lists.num_dropped,
            equal_grades=lists.equal_grades,
            failures=judged.failures,
            reason=judged.reason,
        )
        chosen = ChosenLists(
            keep_disagreement=task.on_disagreement == "keep",
            min_confidence=task.min_confidence,
            flag=task.suspicious == "flag",
            prompts=lists.prompts,
        )
        return outcome.write(files.folder, chosen, files.costs, logger)
    finally:
        files.close()


def _key_of(drawn: Shortlist) -> str:
    return json.dumps([drawn.query_id, *drawn.ids], ensure_ascii=False)


def _is_reversed(seed: int, drawn: Shortlist) -> bool:
    return bool(random_keys(1, seed, random_text_key(_key_of(drawn)))[0] % 2)
