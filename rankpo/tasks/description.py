"""The description of a run, for rankpo.json and the model card."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers

from rankpo import __version__
from rankpo.config.places import INSTALLED, ROOT

if TYPE_CHECKING:
    from rankpo.config.experiment import Experiment


def describe(experiment: Experiment, metrics: Mapping[str, object]) -> dict[str, object]:
    """Returns the description of a run for rankpo.json and the card, without local paths."""
    config = experiment.config
    model = config["model"]
    return {
        "exp_name": experiment.exp_name,
        "base_model": model["name_or_path"] or ("random weights" if model["random"] else None),
        "loss": type(experiment.loss).__name__,
        "loss_values": {k: v for k, v in config["loss"].items() if k != "_target_"},
        "optimizer": {k: v for k, v in config["optimizer"].items() if k != "_target_"},
        "data": {dataset.name: dataset.fingerprint() for dataset in experiment.datasets},
        "seed": experiment.seed,
        "versions": {"rankpo": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "commit": commit(),
        "metrics_before": metrics.get("before") or {},
        "metrics_after": metrics.get("after") or {},
    }


def commit() -> str | None:
    """The commit of the checkout that runs, or None outside of one."""
    return None if INSTALLED else git("rev-parse", "HEAD")


def git(*arguments: str) -> str | None:
    """The output of git in the checkout, stripped; None if git is missing or prints nothing.

    Only absolute folders of PATH are searched for git, so that a program in the current folder is never executed.
    """
    folders = [folder for folder in os.environ.get("PATH", "").split(os.pathsep) if Path(folder).is_absolute()]
    program = shutil.which("git", path=os.pathsep.join(folders) or os.defpath)
    if program is None or not Path(program).is_absolute():
        return None
    done = subprocess.run([program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
