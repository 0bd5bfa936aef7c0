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
from rankpo.judges.pairs import Pair, PairSettings
from rankpo.retrieval.corpus import check_source, open_source, text_key
from rankpo.storage.atomic import replace_text
from rankpo.tasks.base import Task

if TYPE_CHECKING:
    from rankpo.config.build import Experiment
    from rankpo.judges.annotation import Annotator
    from rankpo.judges.costs import Costs
    from rankpo.judges.rankings import Ranking
    from rankpo.judges.records import Records
    from rankpo.judges.samples import Samples
    from rankpo.runs.logger import MetricsLogger
    from rankpo.tasks.base import Session
    from rankpo.types import Prompt

MODES = ("pairs", "scores", "samples")
FEEDBACK = ("pairwise", "scalar")
DISAGREEMENT = ("drop", "keep")


class Unfinished(RuntimeError):
    """The task ended before all pairs were judged; what is done is kept, and the same command goes on."""


@dataclass(frozen=True, kw_only=True)
class Annotate(Task):
    """mode: `pairs` asks for preferences; `scores` (judge=scores) scores every candidate of the datasets; `samples`
    asks about completions that task=sample wrote, and writes HALOs' feedback.jsonl.

    samples: their file, folder or glob. feedback: `pairwise`, or `scalar` (judge=scores): every completion's score.
    queries, corpus: `own` or `pool` of the datasets, or files. run: a TREC run to draw pairs from; None searches
    the corpus with the model. order: `both`, `random` or `given`. on_disagreement: pairs on which both orders differ
    are left out (`drop`) or kept (`keep`, with p near .5). min_confidence: 0 to 100. limit: pairs. dry_run: counts,
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
    max_reasks: int = 1
    max_calls: int | None = None
    max_cost: float | None = None
    limit: int | None = None
    dry_run: bool = False
    output: str = "annotate"

    several_processes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        checked = {"mode": MODES, "order": ORDERS, "on_disagreement": DISAGREEMENT, "feedback": FEEDBACK}
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

    def __call__(self, experiment: Experiment) -> dict[str, Any]:
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
        drawn = self._draw(found, texts, experiment.seed)
        say_cut(experiment.judge, drawn, queries, texts, logger.say)
        if self.dry_run:
            per_pair = 2 if self.order == "both" else 1
            row = estimate(experiment.judge, drawn, queries, texts, per_pair, logger.say)
            logger.table([row], "\ndry run: nothing was asked")
            return row
        with session.claimed(Path(self.output)):
            return self._annotate(experiment, drawn, queries, texts, samples, logger)

    def _samples(self, logger: MetricsLogger) -> Samples | None:
        from rankpo.judges.samples import read_samples

        if self.samples is None:
            return None
        samples = read_samples(self.samples)
        logger.say(
            f"{len(samples.completions)} completions of {len(samples.prompts)} prompts, {samples.empty} empty ones left out"
        )
        return samples

    def _reward(self, experiment: Experiment, samples: Samples, logger: MetricsLogger) -> dict[str, Any]:
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
        if not experiment.datasets:
            raise ConfigError(["datasets is empty; choose those whose candidates are to be scored"])
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

    def _annotate(
        self,
        experiment: Experiment,
        drawn: Sequence[Pair],
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
            return self._finish(folder, records, len(drawn), failures, costs, reason, samples, logger)
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

            def done(number: int, record: dict[str, Any]) -> None:
                annotations.add({"asked": names[number], **record})
                advance(1)

            def failed(number: int, error: Exception) -> None:
                failures[key_of(drawn[number])] = error
                advance(1)

            reason = annotator.run(todo, done, failed)
        return reason, failures

    def _finish(
        self,
        folder: Path,
        records: Sequence[dict[str, Any]],
        num_drawn: int,
        failures: Mapping[str, Exception],
        costs: Costs,
        reason: str | None,
        samples: Samples | None,
        logger: MetricsLogger,
    ) -> dict[str, Any]:
        from rankpo.judges.costs import cost
        from rankpo.judges.report import failure_lines, report

        failed, notice = failure_lines(failures)
        summary = {**report(records), "failed": len(failures), **costs.summary()}
        replace_text(folder / "report.json", json.dumps(summary, indent=1))
        replace_text(folder / "failed.jsonl", "".join(json.dumps(line) + "\n" for line in failed))
        if reason is not None:
            raise Unfinished(f"{reason} ({len(records)} of {num_drawn} pairs are judged)")
        kept = [record for record in records if self._keeps(record)]
        path = _write_kept(folder, kept, samples)
        row: dict[str, Any] = {
            "pairs": len(records),
            "kept": len(kept),
            "failed": len(failures),
            "calls": costs.start.calls,
        }
        row |= {name.replace("_", " "): count for name, count in costs.start.tokens.items()}
        if costs.price:
            row["dollars"] = cost(costs.start.tokens, costs.price)
        row["first shown preferred"] = summary["first_shown_preferred"]["share"]
        row["orders agree"] = summary["orders_agree"]["share"]
        row["agree with ranking"] = summary["agrees_with_ranking"]["share"]
        logger.table([row], f"\n{path} written")
        if notice:
            logger.say(f"{notice}; {folder / 'failed.jsonl'} lists them")
        return summary

    def _keeps(self, record: Mapping[str, Any]) -> bool:
        confidence = record["confidence_score"]
        sure = confidence is None or confidence >= self.min_confidence
        return sure and (record["agree"] or self.on_disagreement == "keep")


def key_of(pair: Pair) -> str:
    """A pair's name in the files of the task."""
    return json.dumps([pair.query_id, pair.id1, pair.id2], ensure_ascii=False)


def _write_kept(folder: Path, kept: Sequence[Mapping[str, Any]], samples: Samples | None) -> Path:
    """RankPO's preferences, or of completions HALOs' feedback."""
    from rankpo.judges.samples import write_feedback

    if samples is not None:
        write_feedback(folder, [samples.pairwise(record) for record in kept])
        return folder / "feedback.jsonl"
    lines = [json.dumps({k: v for k, v in record.items() if k != "asked"}) for record in kept]
    replace_text(folder / "preferences.jsonl", "".join(f"{line}\n" for line in lines))
    return folder / "preferences.jsonl"
