"""Recipes of stage two on the job-talent world, as full fine-tunes by the product's own commands; LOG.md has the table.

    python -m benchmarks.frontier_experiments list
    python -m benchmarks.frontier_experiments train NAME… [--seeds 1 2 3]
    python -m benchmarks.frontier_experiments sweep NAME… [--seeds 1 2 3]   # task=prior, task=frontier on the dev world

The runs of stage one and the judge's pairs (jobs_mined, jobs_stage1, jobs_judged) are those of `./install.sh demo cache_dir=CACHE`;
jobs_judged_narrow has task.pairs.top_k=12 task.pairs.per_query=15.

Each row of the table is a name in `RECIPES`: what is replayed, and the keys that differ from experiment=jobs_stage2.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

CACHE = Path(".cache/frontier")
BINARY = ("replay_datasets=[rankpo]", "replay_datasets.rankpo.path={cache}/jobs_mined/mined.jsonl")
GRADED = (
    "replay_datasets=[jobs_graded]",
    "replay_dataloader=listwise",
    "~replay_dataloader.num_negatives",
    "replay_datasets.jobs_graded.num_negatives=2000",
    "replay_dataloader.group_size=8",
    "replay_dataloader.groups_per_query=one",
    "replay_dataloader.num_positives=4",
    "loss.replay_kind=graded_margin",
)
NARROW, WIDE = "jobs_judged_narrow", "jobs_judged"  # pairs of the top 12 of 120 posts; of the top 100 of 300
PRIOR = ("model.prior_layers=[2,3,4]", "model.prior_lr=0.01", "model.prior_weight=0.05")
APART = (*PRIOR, "loss.prior_weight=1")  # the prior learns the judge, the scores keep stage one
RECIPES: dict[str, tuple[str, tuple[str, ...]]] = {
    "plain": (NARROW, ("replay_datasets=[]", "loss.replay_weight=0")),
    "replayed": (NARROW, BINARY),
    "binary_wide": (WIDE, BINARY),
    "binary_margin": (WIDE, (*BINARY, "loss.replay_kind=graded_margin")),
    "binary_prior_alone": (WIDE, (*BINARY, *APART, "loss.rankpo_weight=0")),
    "binary_prior_both": (WIDE, (*BINARY, *APART)),
    "binary_prior_inside": (WIDE, (*BINARY, *PRIOR)),
    "graded": (WIDE, GRADED),
    "graded_prior_alone": (WIDE, (*GRADED, *APART, "loss.rankpo_weight=0")),
    "graded_prior_both": (WIDE, (*GRADED, *APART)),
    "graded_prior_inside": (WIDE, (*GRADED, *PRIOR)),
}
DEV = (
    "eval_datasets=[jobs_dev,jobs_preferences_dev]",
    "eval_datasets.jobs_dev.num_profiles=500",
    "eval_datasets.jobs_dev.num_posts=60",
    "eval_datasets.jobs_preferences_dev.num_profiles=500",
    "eval_datasets.jobs_preferences_dev.num_posts=60",
    "eval_datasets.jobs_preferences_dev.num_pairs=15",
)


def launch(cache: Path, *command: str) -> float:
    """Runs a command of the product. Returns its seconds; raises CalledProcessError if it fails."""
    started = time.monotonic()
    subprocess.run([sys.executable, "launch.py", *command, f"cache_dir={cache}"], check=True)
    return time.monotonic() - started


def train(cache: Path, name: str, seed: int) -> None:
    pairs, overrides = RECIPES[name]
    seconds = launch(
        cache,
        "experiment=jobs_stage2",
        "datasets=[rankpo]",
        f"datasets.rankpo.path={cache}/{pairs}/annotate/preferences.jsonl",
        *(key.format(cache=cache) for key in overrides),
        f"exp_name=x_{name}_{seed}",
        f"seed={seed}",
        "overwrite=true",
    )
    sys.stdout.write(f"{name}, seed {seed}: {seconds:.0f} s\n")
    sys.stdout.flush()


def sweep(cache: Path, name: str, seed: int) -> None:
    """A prior on the frozen model of a run, and the frontier of the run and the prior on the dev world."""
    pairs, run = f"{cache}/{RECIPES[name][0]}/annotate/preferences.jsonl", f"x_{name}_{seed}"
    frozen = ("task=prior", "model=minilm", f"model.load_from={cache}/{run}/FINAL", PRIOR[0])
    launch(
        cache, *frozen, "datasets=[rankpo]", f"datasets.rankpo.path={pairs}", f"exp_name=prior_{run}", "overwrite=true"
    )
    sources = (
        f"task.runs=[{cache}/{run}]",
        f"task.priors=[{cache}/prior_{run}]",
        f"task.start={cache}/jobs_stage1/FINAL",
    )
    launch(cache, "task=frontier", *sources, *DEV, f"exp_name=frontier_{run}", "overwrite=true")


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("train", "sweep", "list"))
    parser.add_argument("names", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--cache", type=Path, default=CACHE)
    options = parser.parse_args(arguments)
    if options.step == "list":
        for name, (pairs, keys) in RECIPES.items():
            sys.stdout.write(f"{name}: {pairs}; {' '.join(keys)}\n")
        return
    for seed in options.seeds:
        for name in options.names:
            (train if options.step == "train" else sweep)(options.cache, name, seed)


if __name__ == "__main__":
    main(sys.argv[1:])
