"""task=annotate: pairs of a ranking, or of sampled completions, before a judge, in both orders; resumable at any moment."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rankpo.data.readers import files
from rankpo.errors import ConfigError
from rankpo.judges.annotation import ORDERS
from rankpo.judges.outcome import Chosen, Outcome
from rankpo.judges.outcome import Unfinished as Unfinished
from rankpo.judges.pairs import Pair, PairSettings
from rankpo.judges.suspicious import TREATMENTS, suspects
from rankpo.retrieval.corpus import OWN, POOL, check_source, open_source, text_key
from rankpo.tasks.base import Task

if TYPE_CHECKING:
    from rankpo.config.experiment import Experiment
    from rankpo.judges.annotation import Annotator
    from rankpo.judges.rankings import Ranking
    from rankpo.judges.records import Records
    from rankpo.judges.samples import Samples
    from rankpo.runs.logger import MetricsLogger
    from rankpo.tasks.base import Session
    from rankpo.types import Prompt

MODES = ("pairs", "scores", "samples")
FEEDBACK = ("pairwise", "scalar")
DISAGREEMENT = ("drop", "keep")


@dataclass(frozen=True, kw_only=True)
class Annotate(Task):
    """mode: `pairs` asks for preferences; `scores` (judge=scores) scores every candidate of the datasets; `samples`
    asks about completions that task=sample wrote, and writes HALOs' feedback.jsonl.

    samples: their file, folder or glob. feedback: `pairwise`, or `scalar` (judge=scores): every completion's score.
    queries, corpus: `own` or `pool` of the datasets, or files. run: a TREC run to draw pairs from; None searches
    the corpus with the model. order: `both`, `random` or `given`. on_disagreement: pairs on which both orders differ
    are left out (`drop`) or kept (`keep`, with p near .5). min_confidence: 0 to 100. suspicious: pairs with a passage
    that holds marks or instructions for a judge are counted in the report (`keep`), marked in the training file too
    (`flag`), or not asked about (`drop`). limit: pairs. dry_run: counts,
    estimates and shows prompts, and asks nothing. max_calls: of one start; max_cost: dollars of all starts.

    `output` holds annotations.jsonl and cost.jsonl (appended to, call by call), and at the end report.json,
    failed.jsonl and preferences.jsonl (feedback.jsonl of samples).
    """

    mode: str = "pairs"
    queries: str = "pool"
    corpus: str = "pool"
    run: str | None = None
    samples: str | None = None
    feedback: str = "pairwise"
    pairs: PairSettings = field(default_factory=PairSettings)
    order: str = "both"
    on_disagreement: str = "drop"
    min_confidence: float = 0
    suspicious: str = "flag"
    max_reasks: int = 1
    max_calls: int | None = None
    max_cost: float | None = None
    limit: int | None = None
    dry_run: bool = False
    output: str = "annotate"

    several_processes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        checked = {
            "mode": MODES,
            "order": ORDERS,
            "on_disagreement": DISAGREEMENT,
            "feedback": FEEDBACK,
            "suspicious": TREATMENTS,
        }
        for name, allowed in checked.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("limit", "max_calls"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1 or null, got {value}")
        check_source(self.queries, "queries")
        check_source(self.corpus, "corpus")
        if self.run is not None and not Path(self.run).is_file():
            raise FileNotFoundError(f"run={self.run}: no such file; task=search writes one")
        if (self.mode == "samples") != (self.samples is not None):
            raise ValueError(f"samples must be set with mode=samples, and only then, got {self.samples!r}")
        if self.feedback == "scalar" and self.mode != "samples":
            raise ValueError("feedback=scalar needs mode=samples; mode=scores scores the datasets' candidates")
        if self.samples is not None:
            files.find(self.samples, "samples")

    def reads_datasets(self) -> bool:
        return self.mode == "scores" or (self.mode == "pairs" and bool({self.queries, self.corpus} & {OWN, POOL}))

    def __call__(self, experiment: Experiment) -> dict[str, object]:
        """The report. Raises Unfinished where a budget or the server ended the work before its end."""
        from rankpo.judges.estimate import estimate, say_cut

        if self.max_cost is not None and not experiment.judge.price:
            raise ConfigError(["task.max_cost needs judge.price={input:…,output:…}, dollars per million tokens"])
        session = self.open(experiment)
        logger = session.logger
        if self.mode == "scores":
            with session.claimed(Path(self.output)):
                return self._teach(experiment, logger)
        samples = self._samples(logger)
        if samples is not None and self.feedback == "scalar":
            with session.claimed(Path(self.output)):
                return self._reward(experiment, samples, logger)
        queries: Mapping[str, Prompt]
        if samples is None:
            asked = dict(open_source(self.queries, "query", experiment.datasets).texts())
            texts = dict(open_source(self.corpus, "passage", experiment.datasets).texts())
            queries, found = asked, self._rankings(experiment, asked, texts, session)
        else:
            queries, texts, found = samples.prompts, samples.completions, samples.rankings(self.pairs.top_k)
        drawn, num_dropped = self._trusted(self._draw(found, texts, experiment.seed), texts, logger)
        if (key := experiment.judge.unmarked()) is not None:
            logger.say(
                f"{key} has no {{mark}} around the texts: a passage can forge its own end; see judge/template=pair"
            )
        say_cut(experiment.judge, drawn, queries, texts, logger.say)
        if self.dry_run:
            per_pair = 2 if self.order == "both" else 1
            row = estimate(experiment.judge, drawn, queries, texts, per_pair, logger.say)
            logger.table([row], "\ndry run: nothing was asked")
            return row
        with session.claimed(Path(self.output)):
            return self._annotate(experiment, drawn, num_dropped, queries, texts, samples, logger)

    def _samples(self, logger: MetricsLogger) -> Samples | None:
        from rankpo.judges.samples import read_samples

        if self.samples is None:
            return None
        samples = read_samples(self.samples)
        logger.say(
            f"{len(samples.completions)} completions of {len(samples.prompts)} prompts, {samples.empty} empty ones left out"
        )
        return samples

    def _reward(self, experiment: Experiment, samples: Samples, logger: MetricsLogger) -> dict[str, object]:
        from rankpo.judges.samples import reward
        from rankpo.judges.scores import ScoresJudge

        if not isinstance(experiment.judge, ScoresJudge):
            raise ConfigError(["task.feedback=scalar needs judge=scores judge.path=…, a saved model that scores"])
        return reward(experiment.judge, samples, Path(self.output), self.limit, logger.say)

    def _teach(self, experiment: Experiment, logger: MetricsLogger) -> dict[str, Any]:
        from itertools import chain

        from rankpo.judges.scores import ScoresJudge
        from rankpo.judges.teaching import teach

        if not isinstance(experiment.judge, ScoresJudge):
            raise ConfigError(["task.mode=scores needs judge=scores judge.path=…, a saved model that scores"])
        examples = chain.from_iterable(dataset.examples() for dataset in experiment.datasets)
        return {"queries": teach(experiment.judge, examples, Path(self.output), self.limit, logger.say)}

    def _rankings(
        self, experiment: Experiment, queries: Mapping[str, str], texts: Mapping[str, str], session: Session
    ) -> dict[str, Ranking]:
        from rankpo.judges import rankings
        from rankpo.tasks.encode import vector_model

        say = session.logger.say
        if self.run is not None:
            return rankings.of_run(self.run, queries, texts, self.pairs.top_k, say)
        model = vector_model(experiment, session, "task=annotate without task.run")
        return rankings.searched(model, queries, texts, self.pairs.top_k, experiment.cache_dir, say)

    def _draw(self, found: Mapping[str, Ranking], texts: Mapping[str, str], seed: int) -> list[Pair]:
        from rankpo.judges.annotation import equal_texts
        from rankpo.judges.pairs import draw

        drawn: list[Pair] = []
        for query, (ids, scores) in found.items():
            equal = equal_texts(texts, ids, text_key)
            drawn += draw(self.pairs, query, ids, scores, seed, equal)
        if not drawn:
            raise ConfigError(
                [
                    "no pair can be drawn: no query has two different texts; look at task.pairs, task.run and task.samples"
                ]
            )
        return drawn[: self.limit]

    def _trusted(self, drawn: list[Pair], texts: Mapping[str, str], logger: MetricsLogger) -> tuple[list[Pair], int]:
        """The pairs to ask about, and how many are left out with suspicious=drop. Raises ConfigError for none left."""
        if self.suspicious != "drop":
            return drawn, 0
        found = suspects(drawn, texts)
        trusted = [pair for pair in drawn if pair.id1 not in found and pair.id2 not in found]
        if not trusted:
            raise ConfigError([f"task.suspicious=drop leaves none of the {len(drawn)} pairs; look at their passages"])
        if found:
            logger.say(
                f"{len(drawn) - len(trusted)} of {len(drawn)} pairs have a passage with marks or instructions for the "
                "judge and are left out"
            )
        return trusted, len(drawn) - len(trusted)

    @property
    def _chosen(self) -> Chosen:
        return Chosen(
            keep_disagreement=self.on_disagreement == "keep",
            min_confidence=self.min_confidence,
            flag=self.suspicious == "flag",
        )

    def _annotate(
        self,
        experiment: Experiment,
        drawn: Sequence[Pair],
        num_dropped: int,
        queries: Mapping[str, Prompt],
        texts: Mapping[str, str],
        samples: Samples | None,
        logger: MetricsLogger,
    ) -> dict[str, Any]:
        from rankpo.judges.annotation import Annotator, answers_file, asked
        from rankpo.judges.costs import Costs
        from rankpo.judges.records import Records

        folder = Path(self.output)
        judge = experiment.judge
        annotations = Records(folder / "annotations.jsonl", "asked")
        answers = Records(answers_file(experiment.cache_dir, judge), "prompt_hash", shared=True)
        spent = Records(folder / "cost.jsonl", "call")
        costs = Costs(judge.price, spent)
        annotator = Annotator(
            judge=judge,
            answers=answers,
            costs=costs,
            texts=texts,
            queries=queries,
            order=self.order,
            max_reasks=self.max_reasks,
            max_calls=self.max_calls,
            max_cost=self.max_cost,
        )
        names = [asked(judge, pair, queries, texts, self.order) for pair in drawn]
        try:
            reason, failures = self._ask_all(annotator, annotations, drawn, names, experiment.seed, logger)
            records = [record for name in names if (record := annotations.get(name)) is not None]
            outcome = Outcome(
                records=records, num_drawn=len(drawn), num_dropped=num_dropped, failures=failures, reason=reason
            )
            return outcome.write(folder, self._chosen, costs, samples, logger)
        finally:
            judge.close()
            for file in (annotations, answers, spent):
                file.close()

    def _ask_all(
        self,
        annotator: Annotator,
        annotations: Records,
        drawn: Sequence[Pair],
        names: Sequence[str],
        seed: int,
        logger: MetricsLogger,
    ) -> tuple[str | None, dict[str, Exception]]:
        """Why it stopped early, and what failed by pair. names: of the records of the pairs."""
        from rankpo.data.random_keys import random_keys, text_key
        from rankpo.runs.logger import counting

        failures: dict[str, Exception] = {}
        todo = []
        for number, pair in enumerate(drawn):
            exchanged = self.order == "random" and bool(random_keys(1, seed, text_key(key_of(pair)))[0] % 2)
            if annotations.get(names[number]) is None:
                todo.append((number, pair, exchanged))
        logger.say(f"{len(drawn)} pairs, {len(drawn) - len(todo)} of them judged before")
        with counting("annotate", len(todo), shown=True) as advance:
            assert advance is not None

            def done(number: int, record: dict[str, object]) -> None:
                annotations.add({"asked": names[number], **record})
                advance(1)

            def failed(number: int, error: Exception) -> None:
                failures[key_of(drawn[number])] = error
                advance(1)

            reason = annotator.run(todo, done, failed)
        return reason, failures


def key_of(pair: Pair) -> str:
    """A pair's name in the files of the task."""
    return json.dumps([pair.query_id, pair.id1, pair.id2], ensure_ascii=False)
