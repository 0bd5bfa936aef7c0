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
from rankpo.errors import ConfigError
from rankpo.judges import rankings
from rankpo.judges.annotation import Annotator, answers_file, asked, equal_texts
from rankpo.judges.costs import Costs
from rankpo.judges.estimate import estimate, say_cut
from rankpo.judges.forms import Annotation as Record
from rankpo.judges.forms import Answer, Paid
from rankpo.judges.grades import EqualGrades, equal_grades
from rankpo.judges.outcome import Chosen, Outcome
from rankpo.judges.pairs import Pair, draw, in_rounds
from rankpo.judges.records import Records
from rankpo.judges.samples import Samples, read_samples, reward
from rankpo.judges.scores import ScoresJudge
from rankpo.judges.suspicious import suspects
from rankpo.judges.teaching import teach
from rankpo.retrieval.corpus import open_source, text_key
from rankpo.runs.logger import MetricsLogger, counting
from rankpo.tasks.vector_models import vector_model

if TYPE_CHECKING:
    from rankpo.config.experiment import Experiment
    from rankpo.data.dataset import Dataset
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
    samples = _samples(task, logger)
    if samples is not None and task.feedback == "scalar":
        with session.claimed(folder):
            return _reward(task, judge, samples, logger)
    pairs = _pairs(task, experiment, session, samples)
    if (key := judge.unmarked()) is not None:
        logger.say(
            f"{key} has no {{mark}} around the texts, so a passage can imitate the end of its text; see judge/template=pair"
        )
    say_cut(judge, pairs.drawn, pairs.queries, pairs.texts, logger.say)
    if task.dry_run:
        per_pair = 2 if task.order == "both" else 1
        row = estimate(judge, pairs.drawn, pairs.queries, pairs.texts, per_pair, logger.say)
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
        queries, found = own, _rankings(task, experiment, own, texts, session)
    else:
        queries, texts, found = samples.prompts, samples.completions, samples.rankings(task.pairs.top_k)
    drawn = _draw(task, found, texts, experiment.seed)
    trusted = _trusted(task, drawn, texts, session.logger)
    grades = equal_grades(trusted, queries, texts, experiment.datasets) if samples is None else EqualGrades(0, 0)
    if grades.known:
        session.logger.say(
            f"{grades.share:.0%} of the {grades.known} pairs whose grades are known have passages of equal grade"
        )
    prompts = _stated_prompts(experiment.datasets, queries) if samples is None else {}
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


def _stated_prompts(datasets: Sequence[Dataset], queries: Mapping[str, Prompt]) -> dict[str, str]:
    """The query prompts that records state, by the text of the query; the first one of each query."""
    wanted = {query for query in queries.values() if isinstance(query, str)}
    found: dict[str, str] = {}
    for dataset in datasets:
        for example in dataset.examples():
            if example.query_prompt is not None and isinstance(example.query, str) and example.query in wanted:
                found.setdefault(example.query, example.query_prompt)
    return found


def _rankings(
    task: Annotate, experiment: Experiment, queries: Mapping[str, str], texts: Mapping[str, str], session: Session
) -> dict[str, Ranking]:
    say = session.logger.say
    if task.run is not None:
        return rankings.of_run(task.run, queries, texts, task.pairs.top_k, say)
    model = vector_model(experiment, session, "task=annotate without task.run")
    return rankings.searched(model, queries, texts, task.pairs.top_k, experiment.cache_dir, say)


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
    """The answers of a judge about pairs, with the three files that hold them."""

    def __init__(
        self, task: Annotate, experiment: Experiment, judge: Judge, pairs: Pairs, logger: MetricsLogger
    ) -> None:
        self.task, self.judge, self.pairs, self.logger = task, judge, pairs, logger
        self.seed = experiment.seed
        self.folder = Path(task.output)
        self.annotations: Records[Record] = Records(self.folder / "annotations.jsonl", "asked")
        self.answers: Records[Answer] = Records(answers_file(experiment.cache_dir, judge), "prompt_hash", shared=True)
        self.spent: Records[Paid] = Records(self.folder / "cost.jsonl", "call")
        self.costs = Costs(judge.price, self.spent)
        self.names = [asked(judge, pair, pairs.queries, pairs.texts, task.order) for pair in pairs.drawn]

    def write(self, samples: Samples | None) -> Mapping[str, object]:
        """Judges the pairs that have no answer yet and writes the results. Returns the report."""
        try:
            reason, failures = self._ask_all()
            outcome = Outcome(
                records=[record for name in self.names if (record := self.annotations.get(name)) is not None],
                num_drawn=len(self.pairs.drawn),
                num_dropped=self.pairs.num_dropped,
                equal_grades=self.pairs.equal_grades,
                failures=failures,
                reason=reason,
            )
            return outcome.write(self.folder, self._chosen, self.costs, samples, self.logger)
        finally:
            self.judge.close()
            for file in (self.annotations, self.answers, self.spent):
                file.close()

    @property
    def _chosen(self) -> Chosen:
        return Chosen(
            keep_disagreement=self.task.on_disagreement == "keep",
            min_confidence=self.task.min_confidence,
            flag=self.task.suspicious == "flag",
            prompts=self.pairs.prompts,
        )

    @property
    def _annotator(self) -> Annotator:
        return Annotator(
            judge=self.judge,
            answers=self.answers,
            costs=self.costs,
            texts=self.pairs.texts,
            queries=self.pairs.queries,
            order=self.task.order,
            max_reasks=self.task.max_reasks,
            max_calls=self.task.max_calls,
            max_cost=self.task.max_cost,
        )

    def _ask_all(self) -> tuple[str | None, dict[str, Exception]]:
        """Returns the reason of an early stop, or None, and the errors by pair."""
        drawn, names = self.pairs.drawn, self.names
        failures: dict[str, Exception] = {}
        todo = []
        for number, pair in enumerate(drawn):
            key = random_text_key(key_of(pair))
            exchanged = self.task.order == "random" and bool(random_keys(1, self.seed, key)[0] % 2)
            if self.annotations.get(names[number]) is None:
                todo.append((number, pair, exchanged))
        self.logger.say(f"{len(drawn)} pairs, {len(drawn) - len(todo)} of them judged before")
        with counting("annotate", len(todo), shown=True) as advance:
            assert advance is not None

            def done(number: int, record: Record) -> None:
                self.annotations.add({"asked": names[number], **record})
                advance(1)

            def failed(number: int, error: Exception) -> None:
                failures[key_of(drawn[number])] = error
                advance(1)

            reason = self._annotator.run(todo, done, failed)
        return reason, failures


def key_of(pair: Pair) -> str:
    """The key of a pair in the files of the task."""
    return json.dumps([pair.query_id, pair.id1, pair.id2], ensure_ascii=False)
