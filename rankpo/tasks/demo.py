"""Demo of the two-stage recipe on a small generated world: stage one, a judge's preferences, RankPO, a prior and a head.

RankPO is trained alone; a prior and a head learn the judge and keep stage one. A first table compares these models; a
second one adds what the head learns without the judge, and the same steps with grades. `./install.sh demo` runs one seed,
`./install.sh demo full` three. scripts/two_stage.sh runs the two stages at any size.
"""

from __future__ import annotations

import json
import shlex
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rankpo.config.compose import compose
from rankpo.evaluation.jobs_oracle import oracle
from rankpo.runs.logger import MetricsLogger
from rankpo.storage.atomic import replace_text

FULL = "full"
SEEDS, QUICK_SEEDS = (1, 2, 3), (1,)
FIRST_ROUND, STAGE_ONE = "jobs_round1", "jobs_stage1"
BINARY, GRADED = "binary", "graded"
ORACLE_WEIGHT = 1.5  # The weight of the rules' grade relative to the judge's own utility.
EVALUATION = (
    "eval_datasets=[jobs_test,jobs_preferences_test]",
    "eval_datasets.jobs_test.num_profiles=500",
    "eval_datasets.jobs_test.num_posts=60",
    "eval_datasets.jobs_preferences_test.num_profiles=500",
    "eval_datasets.jobs_preferences_test.num_posts=60",
    "eval_datasets.jobs_preferences_test.num_pairs=15",
)
CHOICE = tuple(key.replace("_test", "_dev") for key in EVALUATION)  # The dev world has other posts and profiles.
RULES, KEPT, RECALL, JUDGE = "nDCG@20 (rules)", "kept", "recall@100 (rules)", "agreement (judge)"
JUDGED = "1,800 judged pairs"
GIVEN = {  # The training data of each row of the table.
    "base": "nothing",
    "stage one": "binary labels",
    "RankPO alone": f"binary labels, {JUDGED}",
    "prior and head": f"binary labels, {JUDGED}",
    "head": "binary labels",
    "head (graded)": "grades",
    "prior and head (graded)": f"grades, {JUDGED}",
    "oracle": "the hidden judge and the rules themselves",
}
Found = dict[str, list[dict[str, float]]]  # The metrics of the runs of each row.


class Demo:
    """Runs the tasks of launch.py in this process and prints each command. overrides: added to every command."""

    def __init__(self, overrides: Sequence[str], seeds: Sequence[int]) -> None:
        self.overrides, self.seeds, self.started = list(overrides), seeds, time.monotonic()
        self.logger = MetricsLogger()
        self.runs = compose(self.overrides).runs_dir
        self.mined = self.runs / "jobs_mined" / "mined.jsonl"
        self.pairs = self.runs / "jobs_judged" / "annotate" / "preferences.jsonl"

    def run(self, title: str, seconds: int, *command: str) -> Any:
        """Prints the title, the approximate duration of a step on two cores, and the time so far, and runs the step."""
        past = time.monotonic() - self.started
        self.logger.say(f"\n{title} (about {seconds} s; {past:.0f} s so far)\n  python launch.py {shlex.join(command)}")
        experiment = compose([*command, *self.overrides])
        return experiment.task(experiment)

    def start(self, run: str) -> str:
        return f"model.load_from={self.runs}/{run}/FINAL"

    def binary(self) -> dict[str, list[str]]:
        """Trains all models on binary labels. Returns the names of the runs for each row of the first table."""
        self.stage_one()
        self.annotate()
        rows = {"base": ["jobs_base"], "stage one": [STAGE_ONE]}
        rows["RankPO alone"] = [self.alone(seed) for seed in self.seeds]
        for seed in self.seeds:
            self.prior(seed)
        rows["prior and head"] = [self.keeping(seed, BINARY) for seed in self.seeds]
        return rows

    def further(self) -> dict[str, list[str]]:
        """Trains the models on grades. Returns the names of the runs for each further row of the second table."""
        graded = [self.keeping(seed, GRADED) for seed in self.seeds]
        return {
            "head": [head_of(seed, BINARY) for seed in self.seeds],
            "head (graded)": [head_of(seed, GRADED) for seed in self.seeds],
            "prior and head (graded)": graded,
        }

    def stage_one(self) -> None:
        """Trains two rounds on binary labels, the second with mined hard negatives."""
        self.run(
            "Stage one learns the rules from binary labels: first round",
            30,
            "experiment=jobs_stage1",
            f"exp_name={FIRST_ROUND}",
            "trainer.epochs=1",
            "overwrite=true",
        )
        first = self.start(FIRST_ROUND)
        self.run(
            "Hard negatives, mined with the model of the first round",
            10,
            *("task=mine", "mining=positive_aware", "mining.corpus=own", "datasets=[jobs]", "model=minilm", first),
            *("exp_name=jobs_mined", "overwrite=true"),
        )
        self.run(
            "Stage one, second round, with these hard negatives",
            30,
            *("experiment=jobs_stage1", first, "datasets=[rankpo]", f"datasets.rankpo.path={self.mined}"),
            *(f"exp_name={STAGE_ONE}", "trainer.epochs=1", "optimizer.lr=5e-5", "overwrite=true"),
        )

    def annotate(self) -> None:
        """Asks the judge for preferences on 1,800 pairs from the model's own top 100, six for each post."""
        self.run(
            "A judge compares 1,800 pairs of the model's own rankings",
            15,
            *("task=annotate", "judge=rules", "model=minilm", self.start(STAGE_ONE), "datasets=[jobs]"),
            *("task.queries=own", "task.corpus=own", "task.limit=1800", "exp_name=jobs_judged"),
        )

    def alone(self, seed: int) -> str:
        name = f"jobs_alone_{seed}"
        self.run(
            f"RankPO alone on the judge's pairs, seed {seed}",
            30,
            *(
                "experiment=jobs_stage2",
                self.start(STAGE_ONE),
                "datasets=[rankpo]",
                f"datasets.rankpo.path={self.pairs}",
            ),
            *("replay_datasets=[]", "loss.replay_weight=0", "trainer.max_steps=12"),
            *(f"exp_name={name}", f"seed={seed}", "overwrite=true"),
        )
        return name

    def prior(self, seed: int) -> None:
        """Fits a prior of the passages to the judge."""
        self.run(
            f"A prior of the passages learns the judge by Bradley-Terry, all else frozen, seed {seed}",
            25,
            *("task=prior", "model=minilm", self.start(STAGE_ONE), PRIOR, "datasets=[rankpo]"),
            *(f"datasets.rankpo.path={self.pairs}", f"exp_name=jobs_prior_{seed}", f"seed={seed}", "overwrite=true"),
        )

    def keeping(self, seed: int, labels: str) -> str:
        """Trains a head on frozen layers, and chooses the weight of the prior with task=frontier. Returns the run."""
        head, chosen = head_of(seed, labels), f"jobs_kept_{labels}_{seed}"
        what = "grades" if labels == GRADED else "binary labels"
        rules = GRADED_RULES if labels == GRADED else (*BINARY_RULES, f"datasets.rankpo.path={self.mined}")
        self.run(
            f"A head on several frozen layers learns {what} once more, seed {seed}",
            30,
            *(
                *rules,
                "model=minilm",
                self.start(STAGE_ONE),
                *HEAD,
                f"exp_name={head}",
                f"seed={seed}",
                "overwrite=true",
            ),
        )
        self.run(
            "The model with the best agreement among those that keep 98 % of the start model's NDCG on the dev world",
            25,
            *("task=frontier", f"task.runs=[{self.runs}/{head}]", "task.alphas=[1]", WEIGHTS),
            *(f"task.priors=[{self.runs}/jobs_prior_{seed}]", f"task.start={self.runs}/{STAGE_ONE}/FINAL", *CHOICE),
            *(f"exp_name={chosen}", "overwrite=true"),
        )
        return chosen

    def evaluate(self, run: str) -> dict[str, float]:
        folder = [] if run == "jobs_base" else [self.start(run)]
        command = ("task=evaluate", "model=minilm", *folder, f"exp_name={run}", *EVALUATION)
        found: dict[str, float] = self.run(f"{run} on the test world", 10, *command)[0]
        return found

    def measure(self, rows: Mapping[str, Sequence[str]]) -> Found:
        """The test metrics of the runs of each row."""
        return {title: [self.evaluate(name) for name in names] for title, names in rows.items()}

    def report(self, rows: Mapping[str, Sequence[str]]) -> Path:
        """Writes the report. Runs of one row are seeds of one recipe."""
        runs = [name for names in rows.values() for name in names]
        labels = [f"{name}: '{title}'" for title, names in rows.items() for name in names if title != name]
        page: Path = self.run(
            "Report of all runs",
            5,
            "task=report",
            f"task.runs=[{','.join(f'{self.runs}/{run}' for run in runs)}]",
            "task.metrics=[ndcg@20,recall@100,accuracy]",
            f"task.baseline={STAGE_ONE}",
            f"task.labels={{{', '.join(labels)}}}",
            "task.title=RankPO on the job-talent world",
            f"task.output={self.runs}/demo/report.html",
            *EVALUATION[:3],
        )
        return page

    def show(self, found: Found, bound: Mapping[str, float]) -> str:
        """Prints the table of the rows and of the oracle, and returns its text."""
        several = len(self.seeds) > 1
        of_seeds = (
            f"mean ± deviation over seeds {', '.join(map(str, self.seeds))}" if several else f"seed {self.seeds[0]}"
        )
        title = (
            "\nRules: NDCG on a graded test world with other posts and profiles. Kept: its ratio to that of stage one. "
            f"Judge: agreement on pairs of the test world. Stage two: {of_seeds}."
        )
        return self.logger.table(summary({**found, "oracle": [dict(bound)]}), title)


def head_of(seed: int, labels: str) -> str:
    """The name of the run of a head. labels: BINARY or GRADED."""
    return f"jobs_head_{labels}_{seed}"


PRIOR = "model.prior_layers=[2,3,4]"
HEAD = (
    *("model.freeze_backbone=true", "model.pooled_layers=[2,3,4,5,6]", "trainer.max_tokens=100000"),
    "model.layers=[{type:Dense,out_features:384,activation:Identity,bias:false}]",
    *("optimizer.lr=1e-3", "trainer.batch_size=100", "trainer.max_steps=150"),
)
# The temperature is that of stage one times six: a soft loss keeps the order among the irrelevant.
BINARY_RULES = ("loss=contrastive", "loss.temperature=0.3", "datasets=[rankpo]", "dataloader.num_negatives=3")
CANDIDATES = 2000  # graded candidates of each post and grade: all, so that every passage of an update has a known grade
GRADED_RULES = (
    *("loss=graded_margin", "datasets=[jobs_graded]", f"datasets.jobs_graded.num_negatives={CANDIDATES}"),
    *("dataloader.group_size=8", "dataloader.groups_per_query=one", "dataloader.num_positives=4"),
)
WEIGHTS = "task.prior_weights=[0,0.2,0.3,0.35,0.4,0.45,0.5,0.55,0.6,0.65,0.7,0.8]"


def main(arguments: Sequence[str]) -> int:
    """Trains, evaluates and reports. arguments: `full` for three seeds, and overrides that are added to every launch."""
    overrides = [argument for argument in arguments if argument != FULL]
    demo = Demo(overrides, SEEDS if FULL in arguments else QUICK_SEEDS)
    minutes, first = (20, 12) if FULL in arguments else (7, 5)
    demo.logger.say(
        f"The demo takes about {minutes} minutes on two cores, the first table {first}. Every step prints its command."
    )
    bound = oracle(compose([*EVALUATION, *overrides]).eval_datasets, ORACLE_WEIGHT)
    rows = demo.binary()
    found = demo.measure(rows)
    demo.show(found, bound)
    further = demo.further()
    found |= demo.measure(further)
    page = demo.report({**rows, **further})
    replace_text(page.parent / "results.json", json.dumps({**found, "oracle": [bound]}, indent=1))
    replace_text(page.parent / "table.txt", demo.show(found, bound))
    demo.logger.say(f"\nreport: {page}, after {time.monotonic() - demo.started:.0f} s")
    return 0


def summary(found: Mapping[str, Sequence[Mapping[str, float]]]) -> list[dict[str, str]]:
    """The columns of the final table: quality by the rules, agreement with the judge, and each model's training data."""
    base = found["stage one"][0]["jobs_test/ndcg@20"]
    rows = []
    for title, members in found.items():
        ndcg = [row["jobs_test/ndcg@20"] for row in members]
        rows.append(
            {
                "model": title,
                RULES: spread(ndcg),
                KEPT: f"{100 * statistics.fmean(ndcg) / base:.1f} %",
                RECALL: spread([row["jobs_test/recall@100"] for row in members]),
                JUDGE: spread([row["jobs_preferences_test/accuracy"] for row in members]),
                "given": GIVEN[title],
            }
        )
    return rows


def spread(values: Sequence[float]) -> str:
    """The mean, with the standard deviation if there are several values."""
    mean = f"{statistics.fmean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.4f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
