"""The work of task=annotate: pairs from rankings or sampled completions, judged one by one, with resumption."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from rankpo.data.random_keys import random_keys
from rankpo.data.random_keys import text_key as random_text_key
from rankpo.data.text.conversations import plain_text
from rankpo.errors import ConfigError
from rankpo.judges.annotation import Annotator, asked, equal_texts
from rankpo.judges.estimate import estimate, say_cut
from rankpo.judges.forms import Annotation as Record
from rankpo.judges.grades import EqualGrades, equal_grades
from rankpo.judges.outcome import Chosen, Outcome
from rankpo.judges.pairs import Pair, draw, in_rounds
from rankpo.judges.samples import Samples, read_samples, reward
from rankpo.judges.scores import ScoresJudge
from rankpo.judges.suspicious import suspects
from rankpo.judges.teaching import teach
from rankpo.retrieval.corpus import open_source, text_key
from rankpo.runs.logger import MetricsLogger
from rankpo.tasks.work.annotate_lists import judge_lists
from rankpo.tasks.work.judging import Judging, Plan
from rankpo.tasks.work.rankings import Texts, rankings_of, stated_prompts

if TYPE_CHECKING:
    from rankpo.config.experiment import Experiment
    from rankpo.judges.base import Judge
    from rankpo.judges.rankings import Ranking
    from rankpo.tasks.annotate import Annotate
    from rankpo.tasks.session import Session
    from rankpo.types import Prompt


def run(task: Annotate, experiment: Experiment) -> Mapping[str, object]:
    """Returns the report. Raises Unfinished if a budget is spent or the server fails before all pairs are judged."""
    judge = experiment.judge
    assert judge is not None
    if task.max_cost is not None and not judge.price:
        raise ConfigError(["task.max_cost needs judge.price={input:…,output:…}, dollars per million tokens"])
    session = task.open(experiment)
    folder, logger = Path(task.output), session.logger
    if task.mode == "scores":
        with session.claimed(folder):
            return _teach(task, experiment, judge, logger)
    if task.mode == "lists":
        return judge_lists(task, experiment, judge, session)
    samples = _samples(task, logger)
    if samples is not None and task.feedback == "scalar":
        with session.claimed(folder):
            return _reward(task, judge, samples, logger)
    pairs = _pairs(task, experiment, session, samples)
    if (key := judge.unmarked()) is not None:
        logger.say(
            f"{key} has no {{mark}} around the texts, so a passage can imitate the end of its text; see judge/template=pair"
        )
    shown = {identity for pair in pairs.drawn for identity in (pair.id1, pair.id2)}
    say_cut(
        lambda texts: judge.count_cut(*texts),
        {plain_text(pairs.queries[pair.query_id]) for pair in pairs.drawn},
        {pairs.texts[identity] for identity in shown},
        logger.say,
    )
    if task.dry_run:
        requests = [
            judge.request(pairs.queries[pair.query_id], pairs.texts[pair.id1], pairs.texts[pair.id2])
            for pair in pairs.drawn
        ]
        row = estimate(judge, "pairs", requests, 2 if task.order == "both" else 1, logger.say)
        logger.table([row], "\ndry run: the judge was not called")
        return row
    with session.claimed(folder):
        return Annotation(task, experiment, judge, pairs, logger).write(samples)


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pairs to judge.

    queries, texts: by id. num_dropped: the number of pairs that suspicious=drop excluded.
    equal_grades: counts of pairs of equal grade, for passages whose relevance is in the datasets. prompts: by the text
    of a query, the prompt that its record states.
    """

    drawn: Sequence[Pair]
    num_dropped: int
    queries: Mapping[str, Prompt]
    texts: Mapping[str, str]
    equal_grades: EqualGrades
    prompts: Mapping[str, str]


def _samples(task: Annotate, logger: MetricsLogger) -> Samples | None:
    if task.samples is None:
        return None
    samples = read_samples(task.samples)
    logger.say(
        f"{len(samples.completions)} completions of {len(samples.prompts)} prompts; {samples.empty} empty completions are excluded"
    )
    return samples


def _reward(task: Annotate, judge: Judge, samples: Samples, logger: MetricsLogger) -> Mapping[str, object]:
    if not isinstance(judge, ScoresJudge):
        raise ConfigError(["task.feedback=scalar needs judge=scores judge.path=…, a saved model that scores"])
    return reward(judge, samples, Path(task.output), task.limit, logger.say)


def _teach(task: Annotate, experiment: Experiment, judge: Judge, logger: MetricsLogger) -> Mapping[str, object]:
    if not isinstance(judge, ScoresJudge):
        raise ConfigError(["task.mode=scores needs judge=scores judge.path=…, a saved model that scores"])
    examples = chain.from_iterable(dataset.examples() for dataset in experiment.datasets)
    return {"queries": teach(judge, examples, Path(task.output), task.limit, logger.say)}


def _pairs(task: Annotate, experiment: Experiment, session: Session, samples: Samples | None) -> Pairs:
    """The pairs of the samples, or of the rankings of task.queries."""
    queries: Mapping[str, Prompt]
    if samples is None:
        own = dict(open_source(task.queries, "query", experiment.datasets).texts())
        texts: Mapping[str, str] = dict(open_source(task.corpus, "passage", experiment.datasets).texts())
        queries, found = own, rankings_of(task, experiment, session, Texts(own, texts), task.pairs.top_k)
    else:
        queries, texts, found = samples.prompts, samples.completions, samples.rankings(task.pairs.top_k)
    drawn = _draw(task, found, texts, experiment.seed)
    trusted = _trusted(task, drawn, texts, session.logger)
    grades = equal_grades(trusted, queries, texts, experiment.datasets) if samples is None else EqualGrades(0, 0)
    if grades.known:
        session.logger.say(
            f"{grades.share:.0%} of the {grades.known} pairs whose grades are known have passages of equal grade"
        )
    prompts = stated_prompts(experiment.datasets, queries) if samples is None else {}
    if prompts:
        session.logger.say(
            f"{len(prompts)} queries have a prompt of their own: preferences.jsonl contains it as `prompt`; the search "
            "for passages used the model's query prompt"
        )
    return Pairs(
        drawn=trusted,
        num_dropped=len(drawn) - len(trusted),
        queries=queries,
        texts=texts,
        equal_grades=grades,
        prompts=prompts,
    )


def _draw(task: Annotate, found: Mapping[str, Ranking], texts: Mapping[str, str], seed: int) -> list[Pair]:
    drawn = in_rounds(
        [
            draw(task.pairs, query, ids, scores, seed, equal_texts(texts, ids, text_key))
            for query, (ids, scores) in found.items()
        ]
    )
    if not drawn:
        raise ConfigError(
            [
                "no pair can be drawn, because no query has two different texts; check task.pairs, task.run and task.samples"
            ]
        )
    return drawn[: task.limit]


def _trusted(task: Annotate, drawn: list[Pair], texts: Mapping[str, str], logger: MetricsLogger) -> list[Pair]:
    """The pairs to judge; suspicious=drop excludes suspicious ones. Raises ConfigError if none is left."""
    if task.suspicious != "drop":
        return drawn
    found = suspects(drawn, texts)
    trusted = [pair for pair in drawn if pair.id1 not in found and pair.id2 not in found]
    if not trusted:
        raise ConfigError(
            [
                f"task.suspicious=drop leaves none of the {len(drawn)} pairs; check their passages, or set task.suspicious=flag"
            ]
        )
    if found:
        logger.say(
            f"{len(drawn) - len(trusted)} of {len(drawn)} pairs are excluded, because a passage holds marks or "
            "instructions for the judge"
        )
    return trusted


class Annotation:
    """The answers of a judge about pairs."""

    def __init__(
        self, task: Annotate, experiment: Experiment, judge: Judge, pairs: Pairs, logger: MetricsLogger
    ) -> None:
        self.task, self.pairs, self.logger = task, pairs, logger
        self.seed = experiment.seed
        self.files: Judging[Record] = Judging(task, experiment.cache_dir, judge)
        self.names = [asked(judge, pair, pairs.queries, pairs.texts, task.order) for pair in pairs.drawn]

    def write(self, samples: Samples | None) -> Mapping[str, object]:
        """Judges the pairs that have no answer yet and writes the results. Returns the report."""
        pairs, files = self.pairs, self.files
        annotator = Annotator(
            judge=files.judge,
            answers=files.answers,
            costs=files.costs,
            texts=pairs.texts,
            queries=pairs.queries,
            order=self.task.order,
            max_reasks=self.task.max_reasks,
            max_calls=self.task.max_calls,
            max_cost=self.task.max_cost,
        )
        plan = Plan(
            items=[(pair, self._is_exchanged(pair)) for pair in pairs.drawn],
            names=self.names,
            keys=[key_of(pair) for pair in pairs.drawn],
            work=lambda item: annotator.annotate(*item),
        )
        try:
            judged = files.ask_all(annotator, plan, self.logger)
            outcome = Outcome(
                records=files.known(self.names),
                num_drawn=len(pairs.drawn),
                num_dropped=pairs.num_dropped,
                equal_grades=pairs.equal_grades,
                failures=judged.failures,
                reason=judged.reason,
            )
            return outcome.write(files.folder, self._chosen, files.costs, samples, self.logger)
        finally:
            files.close()

    @property
    def _chosen(self) -> Chosen:
        return Chosen(
            keep_disagreement=self.task.on_disagreement == "keep",
            min_confidence=self.task.min_confidence,
            flag=self.task.suspicious == "flag",
            prompts=self.pairs.prompts,
        )

    def _is_exchanged(self, pair: Pair) -> bool:
        """Whether order=random shows the second passage first."""
        return self.task.order == "random" and bool(random_keys(1, self.seed, random_text_key(key_of(pair)))[0] % 2)


def key_of(pair: Pair) -> str:
    """The key of a pair in the files of the task."""
    return json.dumps([pair.query_id, pair.id1, pair.id2], ensure_ascii=False)
