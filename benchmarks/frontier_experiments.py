"""Recipes of stage two on the job-talent world, by the product's own commands; LOG.md has the tables.

    python -m benchmarks.frontier_experiments list
    python -m benchmarks.frontier_experiments train NAME… [--seeds 1 2 3]
    python -m benchmarks.frontier_experiments sweep NAME… [--seeds 1 2 3]   # all runs in one task=frontier on the dev world

The runs of stage one and the judge's pairs (jobs_mined, jobs_stage1, jobs_judged) are those of `./install.sh demo cache_dir=CACHE`.
Recipes with judged lists need the judge's orders of 225 lists of eight and 450 of four, and `kl_lists` needs the scores of stage
one on 48 candidates of 100 posts; this writes both:

    python -m benchmarks.frontier_experiments judge

Each recipe is a name in `RECIPES`: the keys that differ from 20 updates of experiment=jobs_stage2 on the judge's pairs, 16 an update. All
weights are trained, unless a recipe says otherwise. A run takes a minute of one free core.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

CACHE = Path(".cache/frontier")
PAIRS = "{cache}/jobs_judged/annotate/preferences.jsonl"
MINED = "{cache}/jobs_mined/mined.jsonl"
START = "model.load_from={cache}/jobs_stage1/FINAL"
STAGE_TWO = (
    "experiment=jobs_stage2",
    START,
    "datasets=[rankpo]",
    f"datasets.rankpo.path={PAIRS}",
    "trainer.max_steps=20",
    "trainer.batch_size=16",
    "trainer.replay_batch_size=6",
)
BINARY = ("replay_datasets=[mined:rankpo]", f"replay_datasets.mined.path={MINED}")
REPLAYED = (*STAGE_TWO, *BINARY)
ALL_CANDIDATES = 2000  # of each grade, so that the grade of every passage of an update is known
GRADED = (
    *STAGE_TWO,
    "replay_datasets=[jobs_graded]",
    "replay_dataloader=listwise",
    "~replay_dataloader.num_negatives",
    f"replay_datasets.jobs_graded.num_negatives={ALL_CANDIDATES}",
    "replay_dataloader.group_size=8",
    "replay_dataloader.groups_per_query=one",
    "replay_dataloader.num_positives=4",
    "loss.replay_kind=graded_margin",
)
PRIOR = ("model.prior_layers=[2,3,4]", "model.prior_lr=0.01", "model.prior_weight=0.05")
APART = (*PRIOR, "loss.prior_weight=1")  # The prior learns the judge apart from the scores.
KL = ("loss.kl_weight=0.5", "loss.kl_temperature=0.05")
LAST_LAYERS = r"model.peft.target_modules='.*layer\.[45]\..*(query|key|value|dense)'"
# Two datasets, each with its loss: RankPO on the pairs, and InfoNCE on the mined negatives.
TWO_LOSSES = (
    "loss=rankpo",
    "model=minilm",
    "datasets=[pairs:rankpo,mined:rankpo]",
    f"datasets.pairs.path={PAIRS}",
    f"datasets.mined.path={MINED}",
    "datasets.mined.loss={{name:contrastive,temperature:0.05}}",
    "trainer.batch_size=16",
    "trainer.max_tokens=8192",
    "optimizer.lr=2e-4",
)
# The judge's order of whole lists of eight profiles: 225 lists are as many profiles as 900 pairs have.
LISTS = (
    "model=minilm",
    "kind=embedding",
    START,
    "datasets=[judged:jobs_graded,mined:rankpo]",
    "datasets.judged.num_negatives=3",
    f"datasets.mined.path={MINED}",
    "datasets.mined.loss={{name:contrastive,temperature:0.05}}",
    "loss.target=teacher",
    "loss.temperature=0.05",
    "trainer.batch_size=8",
    "trainer.max_tokens=8192",
    "trainer.max_steps=30",
    "optimizer.lr=2e-4",
)
# The same lists in the order of the judge, as task=annotate task.mode=lists writes them.
JUDGED_LISTS = (
    "model=minilm",
    "kind=embedding",
    START,
    "datasets=[ranked_lists,mined:rankpo]",
    f"datasets.mined.path={MINED}",
    "datasets.mined.loss={{name:contrastive,temperature:0.05}}",
    "loss.temperature=0.05",
    "trainer.batch_size=8",
    "trainer.max_tokens=8192",
    "trainer.max_steps=30",
    "optimizer.lr=2e-4",
)
OF_EIGHT = "datasets.ranked_lists.path={cache}/jobs_listed_8/annotate/lists.jsonl"
OF_FOUR = "datasets.ranked_lists.path={cache}/jobs_listed_4/annotate/lists.jsonl"
# Two datasets in turns: RankPO with graded replay on the pairs, and KL to the scores of stage one on lists of 48.
ANCHORED = (
    *GRADED,
    "datasets=[pairs:rankpo,anchored:jsonl]",
    f"datasets.pairs.path={PAIRS}",
    "datasets.anchored.path={cache}/jobs_scored/annotate/teacher.jsonl",
    "datasets.anchored.scores_are=teacher",
    "datasets.anchored.loss={{name:kl_distill,temperature:0.05,teacher_temperature:0.05}}",
    "loss.replay_weight=2",
    "trainer.batch_size=8",
)
RECIPES: dict[str, tuple[str, ...]] = {
    "plain": (*STAGE_TWO, "replay_datasets=[]", "loss.replay_weight=0"),
    "replay_05": REPLAYED,
    "replay_2": (*REPLAYED, "loss.replay_weight=2"),
    "replay_warm": (*REPLAYED, "loss.replay_weight=2", "loss.replay_temperature=0.3"),
    "graded_05": GRADED,
    "graded_2": (*GRADED, "loss.replay_weight=2"),
    "margin": (*REPLAYED, "loss.margin=1"),
    "binary_margin": (*REPLAYED, "loss.replay_kind=graded_margin", "loss.replay_unknown=irrelevant"),
    "lr_low": (*REPLAYED, "optimizer.lr=5e-5"),
    "lr_high": (*REPLAYED, "optimizer.lr=5e-4"),
    "lora": (*REPLAYED, "model.use_peft=true", "optimizer.lr=2e-3"),
    "lora_last": (*REPLAYED, "model.use_peft=true", LAST_LAYERS, "optimizer.lr=2e-3"),
    "ema": (*REPLAYED, "trainer.ema=0.9"),
    "confidence": (*REPLAYED, "loss.confidence=weight"),
    "smoothing": (*REPLAYED, "loss.confidence=smoothing"),
    "reference": (*REPLAYED, "loss.reference_free=false"),
    "kl": (*REPLAYED, *KL),
    "kl_lists": tuple(key for key in ANCHORED if "datasets.rankpo.path" not in key),
    "kl_graded": (*GRADED, *KL, "loss.replay_weight=2"),
    "prior_apart": (*REPLAYED, *APART, "loss.rankpo_weight=0"),
    "prior_both": (*REPLAYED, *APART, "loss.replay_weight=2"),
    "prior_inside": (*REPLAYED, *PRIOR, "loss.replay_weight=2"),
    "graded_prior_both": (*GRADED, *APART, "loss.replay_weight=2"),
    "listnet": ("loss=listnet", *LISTS, "loss.target_temperature=1"),
    "plackett_luce": ("loss=plackett_luce", *LISTS),
    "judged_lists": ("loss=plackett_luce", *JUDGED_LISTS, OF_EIGHT),
    "judged_lists_of_4": ("loss=plackett_luce", *JUDGED_LISTS, OF_FOUR, "trainer.batch_size=16"),
    "judged_listnet": ("loss=listnet", *JUDGED_LISTS, OF_EIGHT, "loss.target_temperature=0.3"),
    "joint": (*TWO_LOSSES, START, "trainer.max_steps=30"),
    "joint_from_base": (*TWO_LOSSES, "trainer.max_steps=50"),
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
    keys = [key.format(cache=cache) for key in command]
    subprocess.run([sys.executable, "launch.py", *keys, f"cache_dir={cache}", "overwrite=true"], check=True)
    return time.monotonic() - started


def judge(cache: Path) -> None:
    """Writes the judge's orders of lists, and the scores of stage one as a teacher's."""
    asked = ("task=annotate", "model=minilm", START)
    own = (
        "judge=rules",
        "datasets=[jobs]",
        "task.queries=own",
        "task.corpus=own",
        "task.mode=lists",
        "task.order=given",
    )
    for size, number in ((8, 225), (4, 450)):
        lists = (f"task.lists.size={size}", "task.lists.per_query=2", f"task.limit={number}")
        launch(cache, *asked, *own, *lists, f"exp_name=jobs_listed_{size}")
    teacher = ("judge=scores", "judge.path={cache}/jobs_stage1/FINAL", "task.mode=scores", "task.limit=100")
    candidates = ("datasets=[jobs_graded]", "datasets.jobs_graded.num_negatives=16")
    launch(cache, *asked, *teacher, *candidates, "exp_name=jobs_scored")


def train(cache: Path, name: str, seed: int) -> None:
    """Trains a recipe, unless its run is already finished."""
    run = f"x_{name}_{seed}"
    if (cache / run / "FINAL").is_dir():
        return
    seconds = launch(cache, *RECIPES[name], f"exp_name={run}", f"seed={seed}")
    sys.stdout.write(f"{name}, seed {seed}: {seconds:.0f} s\n")
    sys.stdout.flush()


def sweep(cache: Path, names: Sequence[str], seeds: Sequence[int], further: Sequence[str]) -> None:
    """Measures all runs, at α ½ and 1, on the dev world. further: keys that win over those."""
    runs = [f"{cache}/x_{name}_{seed}" for name in names for seed in seeds]
    sources = (f"task.runs=[{','.join(runs)}]", f"task.start={cache}/jobs_stage1/FINAL", "task.alphas=[0.5,1]")
    launch(cache, "task=frontier", *sources, *DEV, f"exp_name=frontier_{names[0]}", *further)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("judge", "train", "sweep", "list"))
    parser.add_argument("names", nargs="*", help="recipes, and for sweep also keys of launch.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--cache", type=Path, default=CACHE)
    options = parser.parse_args(arguments)
    names = [name for name in options.names if "=" not in name]
    if options.step == "list":
        for name, keys in RECIPES.items():
            sys.stdout.write(f"{name}: {' '.join(keys)}\n")
    elif options.step == "judge":
        judge(options.cache)
    elif options.step == "sweep":
        sweep(options.cache, names, options.seeds, [name for name in options.names if "=" in name])
    else:
        for seed in options.seeds:
            for name in names:
                train(options.cache, name, seed)


if __name__ == "__main__":
    main(sys.argv[1:])
