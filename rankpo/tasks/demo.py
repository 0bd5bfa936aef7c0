"""The whole story, small: contrastive training, mining, a second round, a judge's preferences, RankPO over three seeds,
evaluation, report. `./install.sh demo`; scripts/two_stage.sh tells the same at any size.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rankpo.config.compose import compose
from rankpo.runs.logger import MetricsLogger
from rankpo.storage.atomic import replace_text

SEEDS = (1, 2, 3)
FIRST_ROUND, STAGE_ONE = "jobs_round1", "jobs_stage1"
# name of the runs: what it is, and the experiment's overrides
STAGE_TWO = {
    "plain": ("RankPO alone", ("replay_datasets=[]", "loss.replay_weight=0")),
    "replayed": ("RankPO, stage one replayed", ("replay_datasets=[rankpo]", "replay_datasets.rankpo.path={mined}")),
}
INTERPOLATED = "RankPO replayed, 70 % of its way"
ALPHA = 0.7  # share of RankPO's weights, the rest are stage one's
EVALUATION = (
    "eval_datasets=[jobs_test,jobs_preferences_test]",
    "eval_datasets.jobs_test.num_profiles=500",
    "eval_datasets.jobs_test.num_posts=60",
    "eval_datasets.jobs_preferences_test.num_profiles=500",
    "eval_datasets.jobs_preferences_test.num_posts=60",
    "eval_datasets.jobs_preferences_test.num_pairs=15",
)
RULES, KEPT, RECALL, JUDGE = "nDCG@20 (rules)", "of stage one", "recall@100 (rules)", "agreement (judge)"


class Demo:
    """Runs launch.py's own tasks in this process, saying each command. overrides: added to all of them."""

    def __init__(self, overrides: Sequence[str]) -> None:
        self.overrides = list(overrides)
        self.logger = MetricsLogger()
        self.runs = compose(self.overrides).runs_dir
        self.mined = self.runs / "jobs_mined" / "mined.jsonl"

    def run(self, title: str, *command: str) -> Any:
        self.logger.say(f"\n{title}: python launch.py {' '.join(command)}")
        experiment = compose([*command, *self.overrides])
        return experiment.task(experiment)

    def train(self) -> dict[str, list[str]]:
        """All trainings; names of the runs by what they are."""
        self.contrastive()
        preferences = self.annotate()
        runs = {"base": ["jobs_base"], "first round": [FIRST_ROUND], "stage one": [STAGE_ONE]}
        for name, (title, options) in STAGE_TWO.items():
            runs[title] = [f"jobs_{name}_{seed}" for seed in SEEDS]
            for seed, run in zip(SEEDS, runs[title], strict=True):
                data = ("datasets=[rankpo]", f"datasets.rankpo.path={preferences}")
                replay = [option.format(mined=self.mined) for option in options]
                options_of_seed = (f"exp_name={run}", f"seed={seed}", "overwrite=true")
                self.run(f"{title}, seed {seed}", "experiment=jobs_stage2", *data, *replay, *options_of_seed)
        runs[INTERPOLATED] = [f"jobs_aligned_{seed}" for seed in SEEDS]
        for seed, run in zip(SEEDS, runs[INTERPOLATED], strict=True):
            source = ("task=export", f"task.run={self.runs}/jobs_replayed_{seed}", f"task.alphas=[{ALPHA}]")
            self.run(f"{INTERPOLATED}, seed {seed}", *source, f"exp_name={run}", "overwrite=true")
        return runs

    def contrastive(self) -> None:
        """Stage one in two rounds, the second on negatives that the first finds hard."""
        self.run(
            "first round", "experiment=jobs_stage1", f"exp_name={FIRST_ROUND}", "trainer.epochs=1", "overwrite=true"
        )
        first = f"model.load_from={self.runs}/{FIRST_ROUND}/FINAL"
        mined = ("task=mine", "mining=positive_aware", "mining.corpus=own", "datasets=[jobs]", "exp_name=jobs_mined")
        self.run("hard negatives", *mined, "model=minilm", first, "overwrite=true")
        data = ("datasets=[rankpo]", f"datasets.rankpo.path={self.mined}")
        options = (f"exp_name={STAGE_ONE}", "trainer.epochs=1", "optimizer.lr=5e-5", "overwrite=true")
        self.run("second round", "experiment=jobs_stage1", first, *data, *options)

    def annotate(self) -> Path:
        """The judge's preferences in 120 rankings: 15 pairs of the first twelve."""
        shutil.rmtree(self.runs / "jobs_judged", ignore_errors=True)
        model = ("model=minilm", f"model.load_from={self.runs}/{STAGE_ONE}/FINAL", "datasets=[jobs]")
        texts = (
            "task.queries=own",
            "task.corpus=own",
            "task.pairs.top_k=12",
            "task.pairs.per_query=15",
            "task.limit=1800",
        )
        self.run("preferences", "task=annotate", "judge=rules", *model, *texts, "exp_name=jobs_judged")
        return self.runs / "jobs_judged" / "annotate" / "preferences.jsonl"

    def evaluate(self, run: str) -> dict[str, float]:
        folder = [] if run == "jobs_base" else [f"model.load_from={self.runs}/{run}/FINAL"]
        command = ("task=evaluate", "model=minilm", *folder, f"exp_name={run}", *EVALUATION)
        return self.run(run, *command)[0]

    def report(self, runs: Sequence[str]) -> Path:
        folders = ",".join(f"{self.runs}/{run}" for run in runs)
        return self.run(
            "report",
            "task=report",
            f"task.runs=[{folders}]",
            "task.metrics=[ndcg@20,recall@100,accuracy]",
            f"task.baseline={STAGE_ONE}",
            "task.title=RankPO on the job-talent world",
            f"task.output={self.runs}/demo/report.html",
            *EVALUATION[:3],
        )


def main(overrides: Sequence[str]) -> int:
    """Trains, evaluates, reports. overrides: added to every launch."""
    started = time.monotonic()
    demo = Demo(overrides)
    runs = demo.train()
    found = {title: [demo.evaluate(name) for name in names] for title, names in runs.items()}
    page = demo.report([name for names in runs.values() for name in names])
    folder = page.parent
    replace_text(folder / "results.json", json.dumps(found, indent=1))
    seeds = f"mean ± deviation over seeds {', '.join(map(str, SEEDS))}"
    title = f"\nRules: held-out corpus, graded. Judge: agreement on held-out pairs. Stage two: {seeds}."
    replace_text(folder / "table.txt", demo.logger.table(summary(found), title))
    demo.logger.say(f"\nreport: {page}, after {time.monotonic() - started:.0f} s")
    return 0


def summary(found: Mapping[str, Sequence[Mapping[str, float]]]) -> list[dict[str, str]]:
    """The columns to look at: what the rules want beside what the judge wants."""
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
            }
        )
    return rows


def spread(values: Sequence[float]) -> str:
    """Mean, with the standard deviation where there are several."""
    mean = f"{statistics.fmean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.4f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
