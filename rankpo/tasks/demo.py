"""Demo of the two-stage recipe on a small generated world: stage one, a judge's preferences, RankPO, a prior and a head.

RankPO is trained alone; a prior and a head learn the judge and keep stage one; one table compares all models. `./install.sh demo` runs one seed,
`./install.sh demo full` three seeds and a report. scripts/two_stage.sh runs the same steps at any size.
"""

from __future__ import annotations

import json
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
FIRST_ROUND, STAGE_ONE, GRADED = "jobs_round1", "jobs_stage1", "jobs_graded"
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
GIVEN = {  # The training data of each row of the table.
    "base": "nothing",
    "stage one (binary)": "binary labels",
    "stage one (graded)": "grades",
    "RankPO alone": "binary labels, 1,800 judged pairs",
    "prior and head": "binary labels, 1,800 judged pairs",
    "prior and head (graded)": "grades, 1,800 judged pairs",
    "oracle": "the hidden judge and the rules themselves",
}


class Demo:
    """Runs the tasks of launch.py in this process and prints each command. overrides: added to every command."""

    def __init__(self, overrides: Sequence[str], seeds: Sequence[int]) -> None:
        self.overrides, self.seeds = list(overrides), seeds
        self.logger = MetricsLogger()
        self.runs = compose(self.overrides).runs_dir
        self.mined = self.runs / "jobs_mined" / "mined.jsonl"
        self.pairs = self.runs / "jobs_judged" / "annotate" / "preferences.jsonl"

    def run(self, title: str, seconds: int, *command: str) -> Any:
        """Prints the title and the approximate duration of a step on two cores, and runs it."""
        self.logger.say(f"\n{title} (about {seconds} s)\n  python launch.py {' '.join(command)}")
        experiment = compose([*command, *self.overrides])
        return experiment.task(experiment)

    def start(self, run: str) -> str:
        return f"model.load_from={self.runs}/{run}/FINAL"

    def train(self) -> dict[str, list[str]]:
        """Trains all models. Returns the names of the runs for each row of the table."""
        self.stage_one()
        self.annotate()
        rows = {"base": ["jobs_base"], "stage one (binary)": [STAGE_ONE], "stage one (graded)": [GRADED]}
        rows["RankPO alone"] = [self.alone(seed) for seed in self.seeds]
        rows["prior and head"] = [self.keeping(seed, STAGE_ONE) for seed in self.seeds]
        if len(self.seeds) > 1:
            rows["prior and head (graded)"] = [self.keeping(seed, GRADED) for seed in self.seeds]
        return rows

    def stage_one(self) -> None:
        """Trains two rounds on binary labels, the second with mined hard negatives, and then a round on grades."""
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
        self.run(
            "Second baseline: the same model after a round on grades",
            40,
            *(*graded_lists(), "model=minilm", self.start(STAGE_ONE)),
            *("trainer.batch_size=16", "trainer.max_steps=12", "optimizer.lr=1e-4"),
            *(f"exp_name={GRADED}", "overwrite=true"),
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
            40,
            *(
                "experiment=jobs_stage2",
                self.start(STAGE_ONE),
                "datasets=[rankpo]",
                f"datasets.rankpo.path={self.pairs}",
            ),
            *("replay_datasets=[]", "loss.replay_weight=0", "trainer.max_steps=20"),
            *(f"exp_name={name}", f"seed={seed}", "overwrite=true"),
        )
        return name

    def keeping(self, seed: int, start: str) -> str:
        """Fits a prior to the judge, trains a head on frozen layers, and chooses with task=frontier."""
        name = f"{'graded' if start == GRADED else 'binary'}_{seed}"
        grades = start == GRADED
        rules = graded_lists() if grades else ("loss=contrastive", "loss.temperature=0.05", *self.mined_data)
        what = "grades" if grades else "binary labels"
        self.run(
            f"A prior of the passages learns the judge by Bradley-Terry, all else frozen, seed {seed}",
            30,
            *("task=prior", "model=minilm", self.start(STAGE_ONE), PRIOR, "datasets=[rankpo]"),
            *(f"datasets.rankpo.path={self.pairs}", f"exp_name=jobs_prior_{name}", f"seed={seed}", "overwrite=true"),
        )
        self.run(
            f"A head on several frozen layers learns {what} once more, seed {seed}",
            40,
            *(*rules, "model=minilm", self.start(STAGE_ONE), *HEAD, "trainer.max_steps=60"),
            *(f"exp_name=jobs_head_{name}", f"seed={seed}", "overwrite=true"),
        )
        self.run(
            "The model with the best agreement among those that keep 98 % of the start model's NDCG on the dev world",
            40,
            *("task=frontier", f"task.runs=[{self.runs}/jobs_head_{name}]", "task.alphas=[0.5,1]"),
            *(f"task.priors=[{self.runs}/jobs_prior_{name}]", f"task.start={self.runs}/{STAGE_ONE}/FINAL", *CHOICE),
            *("task.prior_weights=[0,0.1,0.15,0.2,0.25,0.3,0.4,0.5]", f"exp_name=jobs_kept_{name}", "overwrite=true"),
        )
        return f"jobs_kept_{name}"

    @property
    def mined_data(self) -> tuple[str, ...]:
        return ("datasets=[rankpo]", f"datasets.rankpo.path={self.mined}", "dataloader.num_negatives=3")

    def evaluate(self, run: str) -> dict[str, float]:
        folder = [] if run == "jobs_base" else [self.start(run)]
        command = ("task=evaluate", "model=minilm", *folder, f"exp_name={run}", *EVALUATION)
        found: dict[str, float] = self.run(f"{run} on the test world", 10, *command)[0]
        return found

    def report(self, runs: Sequence[str]) -> Path:
        page: Path = self.run(
            "Report of all runs",
            5,
            "task=report",
            f"task.runs=[{','.join(f'{self.runs}/{run}' for run in runs)}]",
            "task.metrics=[ndcg@20,recall@100,accuracy]",
            f"task.baseline={STAGE_ONE}",
            "task.title=RankPO on the job-talent world",
            f"task.output={self.runs}/demo/report.html",
            *EVALUATION[:3],
        )
        return page


PRIOR = "model.prior_layers=[2,3,4]"
HEAD = (
    *("model.freeze_backbone=true", "model.pooled_layers=[2,3,4,5,6]", "trainer.batch_size=64", "optimizer.lr=5e-4"),
    *("model.layers=[{type:Dense,out_features:384,activation:Identity,bias:false}]", "trainer.max_tokens=100000"),
)
CANDIDATES = 2000  # graded candidates of each post and grade: all, so that every passage of an update has a known grade


def graded_lists() -> tuple[str, ...]:
    """Overrides for graded margin on lists of eight, four of them relevant."""
    return (
        *("loss=graded_margin", "datasets=[jobs_graded]", f"datasets.jobs_graded.num_negatives={CANDIDATES}"),
        *("dataloader.group_size=8", "dataloader.groups_per_query=one", "dataloader.num_positives=4"),
    )


def main(arguments: Sequence[str]) -> int:
    """Trains, evaluates and reports. arguments: `full` for three seeds, and overrides that are added to every launch."""
    started = time.monotonic()
    overrides = [argument for argument in arguments if argument != FULL]
    seeds = SEEDS if FULL in arguments else QUICK_SEEDS
    demo = Demo(overrides, seeds)
    minutes = 20 if FULL in arguments else 6
    demo.logger.say(f"The demo takes about {minutes} minutes on two cores. Every step prints its command.")
    runs = demo.train()
    found = {title: [demo.evaluate(name) for name in names] for title, names in runs.items()}
    found["oracle"] = [oracle(compose([*EVALUATION, *overrides]).eval_datasets, ORACLE_WEIGHT)]
    page = demo.report([name for names in runs.values() for name in names])
    folder = page.parent
    replace_text(folder / "results.json", json.dumps(found, indent=1))
    spread_over = f"mean ± deviation over seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"seed {seeds[0]}"
    title = (
        "\nRules: NDCG on a graded test world with other posts and profiles. Kept: its ratio to that of stage one (binary). "
        f"Judge: agreement on pairs of the test world. Stage two: {spread_over}."
    )
    replace_text(folder / "table.txt", demo.logger.table(summary(found), title))
    demo.logger.say(f"\nreport: {page}, after {time.monotonic() - started:.0f} s")
    return 0


def summary(found: Mapping[str, Sequence[Mapping[str, float]]]) -> list[dict[str, str]]:
    """The columns of the final table: quality by the rules, agreement with the judge, and each model's training data."""
    base = found["stage one (binary)"][0]["jobs_test/ndcg@20"]
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
