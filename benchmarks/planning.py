"""What stands before an update when there are a million pairs: drawing, dealing, cutting and collating it.

    python -m benchmarks.planning

A run does this in a thread while the update before it runs; here it is timed on its own.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.ours import COMMON
from benchmarks.report import Goal, Options, Report, load, parse, publish, row
from benchmarks.sides import Outcome, Side, Update, measure
from benchmarks.workloads import minilm
from rankpo.types import Example

PAIRS_PER_QUERY = 10
WORDS = tuple(["market", "field", "team", "report", "city", "work", "data", "plan", "study", "model", "skill", "grade"])


@dataclass(frozen=True, kw_only=True)
class SyntheticPairs:
    """Pairs over shared passages of 10 to 120 words: ten per query, two passages made for each query."""

    num_pairs: int
    name: str = "synthetic"
    first: int = 0  # The number of the first query: datasets of different ones have different texts.

    def fingerprint(self) -> str:
        return f"synthetic-{self.num_pairs}-{self.first}"

    def examples(self) -> Iterator[Example]:
        rng = random.Random(0)
        num_queries = -(-self.num_pairs // PAIRS_PER_QUERY)
        passages = [_text(rng, "p", number, rng.randint(10, 120)) for number in range(2 * num_queries)]
        for number in range(num_queries):
            query = _text(rng, "q", self.first + number, rng.randint(5, 40))
            for pair in range(min(PAIRS_PER_QUERY, self.num_pairs - number * PAIRS_PER_QUERY)):
                chosen, rejected = rng.sample(range(len(passages)), 2)
                yield Example(query, (passages[chosen], passages[rejected]), (1.0, 0.0), f"{number}/{pair}")


def _text(rng: random.Random, kind: str, number: int, words: int) -> str:
    return " ".join([f"{kind}{number}", *rng.choices(WORDS, k=words)])


def planning_and_step(
    *, num_pairs: int, batch_size: int, plans: int, num_datasets: int = 1, tiny: bool = False
) -> Update:
    """An update: `plans` preparations of updates far apart, timed, then one training step. The value is the fraction
    of the step's time that one preparation takes. num_datasets: into which the pairs are divided, each update of one."""
    from rankpo.config.compose import compose
    from rankpo.runs import processes
    from rankpo.runs.logger import MetricsLogger
    from rankpo.tasks.work.assemble import assemble

    folder = TemporaryDirectory(prefix="rankpo-benchmark-")
    common = [item for item in COMMON if "shuffle" not in item]  # a shuffled epoch is what is to be planned
    experiment = compose(
        [*common, "loss=rankpo", "model=minilm", f"model.name_or_path={minilm(Path(folder.name), tiny)}", f"trainer.batch_size={batch_size}", "exp_name=benchmark",
         f"cache_dir={folder.name}", "datasets=[toy_pairs]"]
    )  # fmt: skip
    size = num_pairs // num_datasets
    datasets = [SyntheticPairs(num_pairs=size, name=f"part{n}", first=n * size) for n in range(num_datasets)]
    mixing = replace(experiment.mixing, mixing="homogeneous" if num_datasets > 1 else "mixed")
    objectives = [None] * num_datasets
    experiment = replace(experiment, datasets=datasets, objectives=objectives, mixing=mixing)
    trainer = assemble(experiment, processes.make_accelerator(), MetricsLogger(main=False))
    per_epoch = trainer.loader.updates_per_epoch

    def update(step: int) -> Outcome:
        if step == 0:
            trainer.prepare(0)  # orders the epoch, once
        started = time.perf_counter()
        for number in range(plans):
            prepared = trainer.prepare((step * plans + number) * 7919 % per_epoch)  # a prime: updates far apart
        planned = (time.perf_counter() - started) / plans
        started = time.perf_counter()
        trainer.train_step(prepared)
        return Outcome(planned / (time.perf_counter() - started), tokens=prepared.num_tokens)

    update.keep = folder  # type: ignore[attr-defined]  # the token file is mapped from it
    return update


def benchmark(options: Options) -> Report:
    num_pairs, batch_size, plans = (200, 4, 3) if options.quick else (1_000_000, 32, 100)
    arguments = {"num_pairs": num_pairs, "batch_size": batch_size, "plans": plans, "tiny": options.quick}
    sides = [
        Side(f"{plans} plans and one step", planning_and_step, arguments),
        Side("of three datasets", planning_and_step, {**arguments, "num_datasets": 3}),
    ]
    updates = options.updates or (1 if options.quick else 5)
    found = measure(sides, updates, options.threads, options.isolated)
    shares = {side.name: sorted(found[side.name].values[-updates:])[updates // 2] for side in sides}
    goals = [
        Goal(
            f"planning and collation of an update, of its step{more}",
            100 * shares[side.name],
            2.0,
            upper=True,
            unit=" %",
        )
        for side, more in zip(sides, ("", ", three datasets"), strict=True)
    ]
    return Report(
        "planning",
        f"{num_pairs:,} preference pairs over {num_pairs // 5:,} passages, {batch_size} pairs per update, MiniLM. The "
        "value is the time of planning and collating one update as a fraction of its step; the order of the epoch, drawn "
        "once for all its updates, is not in it.",
        [row(found[side.name]) for side in sides],
        goals,
    )


if __name__ == "__main__":
    chosen, before = parse("benchmarks.planning"), load()
    publish(benchmark(chosen), chosen, before)
